"""Packing loses no token, and resumes exactly from a saved state."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_pure.data.documents import Documents
from modeling_pure.data.packing import PackedSequences, pack_in_order, redistribute_sequences
from modeling_pure.data.source_records import ExamRecords
from modeling_pure.data.tokenizer import DocumentTokenizer
from tests.conftest import WORDS, through_checkpoint
from tests.data.conftest import NumberedRecords


class LongRecords(NumberedRecords):
    """Documents of very different lengths."""

    def read(self, shard: int, epoch: int, start: int):
        for sequence, text in super().read(shard, epoch, start):
            yield sequence, f"{text} " + " ".join(random.Random(text).choices(WORDS, k=sequence**2))


def packed(tokenizer, sequence_length=48, window=400, sizes=(6, 9), worker=0, num_workers=1, max_epochs=None):
    documents = Documents(LongRecords(list(sizes)), 0, worker, num_workers, max_epochs)
    return PackedSequences(documents, DocumentTokenizer(tokenizer), sequence_length, window)


def all_sequences(sequences: PackedSequences) -> list[np.ndarray]:
    drawn = []
    while (sequence := sequences.next_sequence()) is not None:
        drawn.append(sequence)
    return drawn


@settings(deadline=None, max_examples=30)
@given(sequence_length=st.sampled_from([5, 48, 500]), window=st.sampled_from([1, 100, 10_000]))
def test_every_token_of_every_document_is_drawn_once_and_in_order(tokenizer, sequence_length, window):
    sequences = packed(tokenizer, sequence_length, window, max_epochs=2)
    drawn = all_sequences(sequences)
    tokens = np.concatenate([*drawn, sequences._tokens])
    assert sequences.leftover == len(sequences._tokens) < sequence_length
    assert len(tokens) == len(drawn) * sequence_length + sequences.leftover
    documents = Documents(LongRecords([6, 9]), max_epochs=2)
    expected = [shard for text in documents.read(10**9) for shard in DocumentTokenizer(tokenizer)([text])]
    np.testing.assert_array_equal(tokens, np.concatenate(expected))


def test_sequences_have_the_requested_length_and_type(tokenizer):
    sequence = packed(tokenizer, sequence_length=37).next_sequence()
    assert sequence.shape == (37,)
    assert sequence.dtype == np.int32


@settings(deadline=None, max_examples=30)
@given(
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    sequence_length=st.sampled_from([7, 48, 200]),
    window=st.sampled_from([1, 400]),
)
def test_sequences_resume_from_a_saved_state(tokenizer, cuts, sequence_length, window):
    straight = packed(tokenizer, sequence_length, window)
    sequences = packed(tokenizer, sequence_length, window)
    for cut in [*cuts, 10]:
        for _ in range(cut):
            np.testing.assert_array_equal(sequences.next_sequence(), straight.next_sequence())
        state = through_checkpoint(sequences.state_dict())
        sequences = packed(tokenizer, sequence_length, window)
        sequences.load_state_dict(state)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 5)])
def test_other_workers_repeat_at_most_a_window_each_and_lose_nothing(tokenizer, before, after):
    window = 300

    def group(count: int) -> list[PackedSequences]:
        return [packed(tokenizer, 48, window, [15, 12], worker, count, max_epochs=2) for worker in range(count)]

    old, drawn = group(before), []
    for number, sequences in enumerate(old):
        drawn += [sequences.next_sequence() for _ in range(6 + 3 * number)]
    states = [sequences.state_dict() for sequences in old]
    new = group(after)
    for number, sequences in enumerate(new):
        sequences.load_state_dict(through_checkpoint(redistribute_sequences(states, first=number == 0)))
        drawn += [*all_sequences(sequences), sequences._tokens]
    straight = packed(tokenizer, 48, window, [15, 12], max_epochs=2)
    once = sum(map(len, all_sequences(straight))) + straight.leftover
    repeated = sum(map(len, drawn)) - once
    longest = max(len(tokens) for tokens in straight.tokenize([text for _, text in LongRecords([15]).read(0, 0, 0)]))
    assert 0 <= repeated <= before * (window + longest)  # a token is a character at least
    starts = {tuple(sequence[:5]) for sequence in drawn}
    assert len(starts) > 10


def test_text_that_spells_a_special_token_does_not_end_a_document(tokenizer):
    tokenize = DocumentTokenizer(tokenizer)
    text = f"before {tokenizer.eos_token} after {tokenizer.pad_token}"
    ids = tokenize([text])[0]
    assert ids.tolist().count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids[:-1]) == text


def test_tokens_are_those_of_the_tokenizer(tokenizer, questions):
    texts = [text for _, text in ExamRecords("key", questions).read(0, 0, 0)]
    for text, ids in zip(texts, DocumentTokenizer(tokenizer)(texts), strict=True):
        assert ids.tolist() == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


def test_packing_in_order_drops_the_end_that_fills_no_sequence(tokenizer):
    texts = ["fever cough rash", "pain fatigue", "heart lungs"]
    sequences = list(pack_in_order(iter(texts), DocumentTokenizer(tokenizer), 4))
    tokens = np.concatenate(DocumentTokenizer(tokenizer)(texts))
    np.testing.assert_array_equal(np.concatenate(sequences), tokens[: len(tokens) // 4 * 4])
