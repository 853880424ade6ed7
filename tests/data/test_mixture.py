"""The mixture keeps its proportions, and its position survives prefetching, resuming and a change of workers."""

import re
import shutil
from collections import Counter
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_pure.data.mixture import collate_sequences, document_boundaries
from modeling_pure.errors import InputError, RunStopped
from tests.conftest import numbers_in, through_checkpoint, write_jsonl
from tests.data.conftest import documents_in


def take(iterator, count: int) -> list[dict]:
    return list(islice(iterator, count))


def loader(mixture, workers: int, batch_size: int = 3) -> DataLoader:
    return DataLoader(mixture, batch_size=batch_size, collate_fn=collate_sequences, num_workers=workers)


def test_sequences_come_from_the_sources_in_proportion(make_mixture):
    sequences = take(iter(make_mixture()), 40)
    assert sequences[-1]["data_state"]["drawn"] == {"finepdfs": 18, "fineweb_edu": 10, "c4": 8, "usmle": 4}
    assert Counter(sequence["source"] for sequence in sequences) == sequences[-1]["data_state"]["drawn"]


def test_a_sequence_holds_text_of_its_source_alone(make_mixture, tokenizer):
    seen = Counter()
    for sequence in take(iter(make_mixture()), 200):
        found = re.findall(r"(finepdfs|fineweb_edu|c4) \d+:|(Question):", tokenizer.decode(sequence["input_ids"]))
        names = {name or "usmle" for name, _ in found}
        assert names <= {sequence["source"]}
        seen.update(names)
    assert min(seen[name] for name in ("finepdfs", "fineweb_edu", "c4", "usmle")) > 5


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 1), (4, 2), (3, 0)])
def test_every_global_batch_is_in_proportion(make_mixture, world_size, workers):
    ranks = [make_mixture(rank=rank, world_size=world_size, batch_size=5) for rank in range(world_size)]
    steps = 6
    drawn = [[] for _ in range(steps)]  # by step, the sources of all ranks' sequences
    for mixture in ranks:
        streams = [mixture.sequences_of_worker(worker, max(1, workers)) for worker in range(max(1, workers))]
        for step in range(steps):
            drawn[step] += [sequence["source"] for sequence in take(streams[step % len(streams)], 5)]
    for names in drawn:
        for source in ranks[0].sources:
            assert abs(names.count(source.name) - len(names) * source.weight) < 2


def test_dev_questions_and_copies_of_them_are_not_trained_on(make_mixture, sources, corpus):
    mixture = make_mixture()
    usmle = mixture.data.sources[-1]
    assert usmle.dev
    assert not {q.digest for q in usmle.records.questions} & {q.digest for q in usmle.dev}
    assert len(usmle.records.questions) + len(usmle.dev) == 120
    assert len(make_mixture(grpo_holdout=0.5).data.sources[-1].records.questions) < 0.7 * len(usmle.records.questions)
    copies = {**sources["usmle"], "validation_path": str(corpus / "questions.jsonl"), "weight": 1}
    with pytest.raises(InputError, match=r"^sources\.usmle: .*questions\.jsonl'"):
        make_mixture({"usmle": copies})


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_run_resumes_with_the_next_batch(make_mixture, workers):
    straight = [batch["input_ids"] for batch in take(iter(loader(make_mixture(), workers)), 17)]
    states, last_worker, seen = {}, None, []
    for count in (4, 7, 6):  # two interruptions; workers have read ahead at each
        mixture = make_mixture()
        if states:
            ranks = through_checkpoint([{"workers": states, "last_worker": last_worker}])
            assert mixture.resume(ranks, max(1, workers)) is None
        for batch in take(iter(loader(mixture, workers)), count):
            last_worker = batch["data_state"]["worker"]
            states[str(last_worker)] = batch["data_state"]
            seen.append(batch["input_ids"])
    np.testing.assert_array_equal(np.stack(seen), np.stack(straight))


@pytest.mark.parametrize("cut", [1, 30, 111, 400])
def test_one_state_is_enough_wherever_it_was_taken(make_mixture, cut):
    straight = take(iter(make_mixture()), cut + 40)
    state = through_checkpoint(straight[cut - 1]["data_state"])
    resumed = take(make_mixture().sequences_of_worker(state=state), 40)
    np.testing.assert_array_equal([one["input_ids"] for one in resumed], [one["input_ids"] for one in straight[cut:]])
    assert resumed[-1]["data_state"] == straight[-1]["data_state"]


def test_ranks_and_workers_share_an_epoch_without_overlap_or_gap(make_mixture, sources, tokenizer):
    given = {"finepdfs": {**sources["finepdfs"], "weight": 1, "max_epochs": 1}}
    seen = []
    for rank in range(2):
        mixture = make_mixture(given, rank=rank, world_size=2)
        for worker in range(3):
            sequences = []
            with pytest.raises(RunStopped, match="^sources: .*max_epochs"):
                sequences.extend(mixture.sequences_of_worker(worker, 3))
            seen.append(documents_in(sequences, tokenizer, "finepdfs"))
    assert sum(map(len, seen)) == len(set.union(*seen))
    # The end of the last document of each of the six workers may not fill a sequence.
    assert set.union(*seen) <= set(range(40, 300))
    assert sum(map(len, seen)) >= 260 - 6 * 5


def rank_states(mixtures: list, workers: int, batches: int) -> tuple[list[dict], list[dict]]:
    """The checkpointed states of all ranks after some batches each, and the sequences of each worker."""
    ranks, by_worker = [], []
    for mixture in mixtures:
        states, last = {}, None
        streams = [
            mixture.sequences_of_worker(worker, workers, mixture.position.get(str(worker)))
            for worker in range(workers)
        ]
        sequences: list[list[dict]] = [[] for _ in streams]
        for batch in range(batches):
            drawn = take(streams[batch % workers], 3)
            last = drawn[-1]["data_state"]["worker"]
            states[str(last)] = drawn[-1]["data_state"]
            sequences[batch % workers] += drawn
        by_worker += sequences
        ranks.append({"workers": {**mixture.position, **states}, "last_worker": last})
    return through_checkpoint(ranks), by_worker


@pytest.mark.parametrize(("before", "after"), [((1, 1), (1, 2)), ((2, 2), (1, 1)), ((1, 3), (2, 2))])
def test_other_ranks_and_workers_continue_with_unread_documents(make_mixture, tokenizer, before, after):
    def mixtures(world_size: int) -> list:
        group = [make_mixture(rank=rank, world_size=world_size, batch_size=3) for rank in range(world_size)]
        for mixture in group:
            mixture.window_characters = 600
        return group

    ranks, first = rank_states(mixtures(before[0]), before[1], batches=30)
    resumed = mixtures(after[0])
    messages = [mixture.resume(ranks, after[1]) for mixture in resumed]
    for message in messages:  # ranks and workers, then and now
        assert numbers_in(message) == [str(number) for number in (*before, *after)]
    ranks_after, second = rank_states(resumed, after[1], batches=20)
    seen, again = (
        set().union(*(documents_in(one, tokenizer, "finepdfs") for one in group)) for group in (first, second)
    )
    trained = sum(map(len, first)) + sum(map(len, second))
    # A window of 600 characters holds up to 600 / 17 + 1 of these documents.
    assert len(seen) > 20
    assert len(again) > 10
    assert len(seen & again) <= before[0] * before[1] * 36
    states = [state for rank in ranks_after for state in rank["workers"].values()]
    drawn = resumed[0].progress(states)
    assert sum(done["sequences"] for done in drawn.values()) == trained
    num_workers = after[0] * after[1] + before[0] * before[1]
    for source in resumed[0].sources:
        assert abs(drawn[source.name]["sequences"] - trained * source.weight) <= num_workers


def test_workers_change_before_each_has_drawn(make_mixture):
    ranks, _ = rank_states([make_mixture()], 4, batches=2)
    mixture = make_mixture()
    assert numbers_in(mixture.resume(ranks, 1)) == ["1", "4", "1", "1"]
    assert len(take(iter(mixture), 50)) == 50


@pytest.mark.parametrize(
    ("of_source", "changes", "key"),
    [
        ({}, {"seed": 1}, "seed"),
        ({}, {"max_seq_length": 16}, "max_seq_length"),
        ({"weight": 0.1}, {}, "sources.(c4|finepdfs)"),
        ({"validation_documents": 41}, {}, "sources.c4"),
        ({"path": "other.jsonl"}, {}, "sources.c4"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    make_mixture, sources, tmp_path, monkeypatch, of_source, changes, key
):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "other.jsonl", [{"text": f"c4 {i}: fever"} for i in range(100)])
    ranks, _ = rank_states([make_mixture()], 1, batches=1)
    other = {**sources, "c4": {**sources["c4"], **of_source}}
    if "weight" in of_source:
        other["finepdfs"] = {**sources["finepdfs"], "weight": 0.55}
    with pytest.raises(InputError, match=f"^{key}: "):
        make_mixture(other, **changes).resume(ranks, 1)


def test_a_checkpoint_with_answers_in_other_formats_is_refused(make_mixture, sources):
    ranks, _ = rank_states([make_mixture()], 1, batches=1)
    letters = {**sources, "usmle": {**sources["usmle"], "answer_formats": {"letter": 1}}}
    assert make_mixture(letters).resume(ranks, 1) is None
    for formats in ("text", {"letter": 0.5, "text": 0.5}):
        with pytest.raises(InputError, match=r"^sources\.usmle: "):
            make_mixture({**sources, "usmle": {**sources["usmle"], "answer_formats": formats}}).resume(ranks, 1)


def test_a_checkpoint_with_other_passages_is_refused(make_mixture, sources, corpus, tmp_path, tokenizer_folder):
    books = shutil.copytree(corpus, tmp_path / "books", ignore=shutil.ignore_patterns("questions*"))

    def opened(**fields):
        given = {**sources, "usmle": {**sources["usmle"], **fields}}
        return make_mixture(given, tokenizer_name_or_path=str(tokenizer_folder))

    ranks, _ = rank_states([opened(passages=str(books))], 1, batches=1)
    assert opened(passages=str(books), passages_share=0.5, num_passages=3).resume(ranks, 1) is None
    for fields in ({}, {"passages": str(books), "passages_share": 1}, {"passages": str(books), "num_passages": 1}):
        with pytest.raises(InputError, match=r"^sources\.usmle: "):
            opened(**fields).resume(ranks, 1)


def test_a_checkpoint_of_other_sources_or_of_pretokenized_sequences_is_refused(make_mixture, sources):
    ranks, _ = rank_states([make_mixture()], 1, batches=1)
    two = {name: {**sources[name], "weight": 0.5} for name in ("c4", "finepdfs")}
    with pytest.raises(InputError, match=r"^sources\."):
        make_mixture(two).resume(ranks, 1)
    with pytest.raises(InputError, match="^pretokenized_dir: "):
        make_mixture().resume([{"workers": {"0": {"sequences_read": 3}}, "last_worker": 0}], 1)


def test_sources_in_another_order_are_the_same_sources(make_mixture, sources):
    ranks, _ = rank_states([make_mixture()], 1, batches=1)
    assert make_mixture(dict(reversed(sources.items()))).resume(ranks, 1) is None


@pytest.mark.parametrize("num_workers", [2, 8])
def test_few_and_uneven_files_are_shared_evenly(make_mixture, tmp_path, num_workers):
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"a {i}"} for i in range(64)])  # all of it is for validation
    write_jsonl(tmp_path / "b.jsonl", [{"text": f"b {i}"} for i in range(800)])
    mixture = make_mixture({"web": {"path": str(tmp_path), "weight": 1, "max_epochs": 1}})
    shares = [
        mixture.packed_source("web", worker, num_workers).documents.read(10**9, 10**9) for worker in range(num_workers)
    ]
    assert sorted(text for share in shares for text in share) == sorted(f"b {i}" for i in range(800))
    assert all(abs(len(share) - 800 / num_workers) < 40 for share in shares)


def test_a_worker_without_text_in_some_epochs_continues(make_mixture, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"a {i}"} for i in range(100)])
    mixture = make_mixture({"web": {"path": str(tmp_path), "weight": 1, "validation_documents": 90}})
    for worker in range(8):  # ten documents per epoch among eight workers
        assert len(mixture.packed_source("web", worker, 8).documents.read(10**9, 200)) == 200


def test_a_source_that_ends_leaves_its_share_to_the_others(make_mixture, sources):
    capped = {**sources, "usmle": {**sources["usmle"], "max_epochs": 1}}
    sequences = take(iter(make_mixture(capped)), 3000)
    names = [sequence["source"] for sequence in sequences]
    last = max(i for i, name in enumerate(names) if name == "usmle")
    assert last < 2900
    after = names[last + 1 :]
    for name, weight in (("finepdfs", 9 / 18), ("fineweb_edu", 5 / 18), ("c4", 4 / 18)):
        assert abs(after.count(name) - len(after) * weight) < 2
    straight = take(iter(make_mixture(capped)), last + 30)  # and the change itself resumes exactly
    resumed = take(make_mixture(capped).sequences_of_worker(state=sequences[last + 9]["data_state"]), 20)
    np.testing.assert_array_equal(
        [one["input_ids"] for one in resumed], [one["input_ids"] for one in straight[last + 10 :]]
    )


def test_the_counts_are_those_of_documents_and_faults(make_mixture, sources, tmp_path):
    records = [{"text": text} for i in range(30) for text in (f"fever and cough {i}", None, "", f"rash {i}")]
    path = write_jsonl(tmp_path / "holes.jsonl", records)
    given = {"holes": {"path": str(path), "weight": 1, "validation_documents": 4}}
    mixture = make_mixture(given)
    mixture.window_characters = 100
    state = take(iter(mixture), 40)[-1]["data_state"]
    counts = state["sources"]["holes"]["read"]
    assert counts["documents_read"] > 50
    assert counts["skipped"]["no text"] > 50
    assert counts["skipped"]["validation document"] >= 4
    assert mixture.progress([state])["holes"]["skipped"] == sum(counts["skipped"].values())


def test_a_batch_has_no_mask_and_its_labels_are_its_inputs(make_mixture):
    batch = collate_sequences(take(iter(make_mixture()), 2))
    assert set(batch) == {"input_ids", "labels", "source", "data_state"}
    assert batch["input_ids"].shape == (2, 32)
    assert (batch["labels"] == batch["input_ids"]).all()


def test_document_boundaries_in_both_forms(make_mixture, tokenizer):
    end = tokenizer.eos_token_id
    batch = partial(collate_sequences, document_end=end)(take(iter(make_mixture()), 20))
    ids, positions = batch["input_ids"], batch["position_ids"]
    expected, offsets = torch.zeros_like(ids), []
    for row in range(20):
        for column in range(32):
            begins = column == 0 or ids[row, column - 1] == end
            expected[row, column] = 0 if begins else expected[row, column - 1] + 1
            offsets += [row * 32 + column] if begins else []
    assert (positions == expected).all()
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [*offsets, 20 * 32]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    # A bound, the same for every batch: compiled layers guard on it.
    assert batch["max_length_q"] == batch["max_length_k"] == 32 >= max(np.diff([*offsets, 640]))


def test_positions_restart_after_each_end_of_text():
    ids = torch.tensor([[5, 6, 0, 7, 0, 0, 8, 9], [0, 1, 2, 3, 4, 5, 6, 7]])
    positions = document_boundaries(ids, 0)["position_ids"]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]


def test_a_sequence_of_one_document_is_one_document():
    boundaries = document_boundaries(torch.ones(2, 5, dtype=torch.long), document_end=0)
    assert boundaries["cu_seq_lens_q"].tolist() == [0, 5, 10]
    assert boundaries["max_length_q"] == 5
