"""The mixture keeps its proportions at every prefix, and its position survives workers, prefetching and resuming."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_pure.data.mixture import (
    Mixture,
    Schedule,
    collate_rows,
    training_questions,
    validation_mixture,
    validation_questions,
)
from modeling_pure.data.sources import parse_sources
from modeling_pure.errors import InputError


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 400))
def test_every_source_stays_within_one_row_of_its_share(weights, rows):
    schedule = Schedule(weights)
    for drawn in range(1, rows + 1):
        schedule.next_source()
        for weight, count in zip(weights, schedule.drawn, strict=True):
            assert abs(count - drawn * weight / sum(weights)) < max(1, len(weights) - 1)


def test_any_twenty_rows_hold_nine_five_four_two():
    schedule = Schedule([9, 5, 4, 2])
    drawn = [schedule.next_source() for _ in range(200)]
    for start in range(180):
        assert [drawn[start : start + 20].count(i) for i in range(4)] == [9, 5, 4, 2]


def take(iterator, count: int) -> list[dict]:
    return [next(iterator) for _ in range(count)]


def make_mixture(sources, tokenizer, **kwargs) -> Mixture:
    return Mixture(parse_sources(sources), tokenizer, row_length=32, **kwargs)


def test_rows_come_from_the_sources_in_proportion(sources, tokenizer):
    state = take(iter(make_mixture(sources, tokenizer)), 40)[-1]["data_state"]
    assert state["drawn"] == [18, 10, 8, 4]


def test_held_out_text_is_not_trained_on(sources, tokenizer):
    held_out = validation_mixture(parse_sources(sources), tokenizer, 32, 1000)
    trained = take(iter(make_mixture(sources, tokenizer)), 1500)
    for name in ("finepdfs", "c4"):
        assert documents_in(held_out, tokenizer, name) <= set(range(40))
        seen = documents_in(trained, tokenizer, name)
        assert seen <= set(range(40, 300)) and len(seen) > 100


def test_dev_questions_are_not_trained_on(sources, tokenizer, corpus):
    usmle = parse_sources(sources)[-1]
    train, dev = training_questions(usmle, 0.0), validation_questions(usmle)
    assert dev and not {q.digest for q in train} & {q.digest for q in dev}
    assert len(train) + len(dev) == 120
    assert len(training_questions(usmle, 0.5)) < 0.7 * len(train)


def test_copies_of_questions_in_a_validation_file_are_not_trained_on(sources, corpus):
    usmle = {**sources["usmle"], "validation_path": str(corpus / "questions.jsonl"), "weight": 1}
    assert training_questions(parse_sources({"usmle": usmle})[0], 0.0) == []


def test_validation_rows_never_repeat_a_document(sources, tokenizer):
    rows = validation_mixture(parse_sources(sources), tokenizer, 32, 10_000)
    assert 20 < len(rows) < 10_000
    with pytest.raises(InputError, match="do not fill one row"):
        validation_mixture(parse_sources(sources), tokenizer, 8_000, 10)


def loader(mixture: Mixture, workers: int) -> DataLoader:
    return DataLoader(mixture, batch_size=3, collate_fn=collate_rows, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_run_goes_on_with_the_next_batch(sources, tokenizer, workers):
    straight = [batch["input_ids"] for batch in take(iter(loader(make_mixture(sources, tokenizer), workers)), 17)]
    position, last_worker, seen = {}, None, []
    for count in (4, 7, 6):  # two interruptions; workers have read ahead at each
        mixture = make_mixture(sources, tokenizer)
        if position:
            mixture.resume(json.loads(json.dumps(position)), last_worker)
        for batch in take(iter(loader(mixture, workers)), count):
            last_worker = batch["data_state"]["worker"]
            position[str(last_worker)] = batch["data_state"]
            seen.append(batch["input_ids"])
    np.testing.assert_array_equal(np.stack(seen), np.stack(straight))


def documents_in(rows: list[dict], tokenizer, name: str) -> set[int]:
    """The numbers of the documents of one text source that begin in these rows."""
    texts = [tokenizer.decode(row["input_ids"]) for row in rows]
    return {int(number) for text in texts for number in re.findall(rf"{name} (\d+):", text)}


def test_ranks_share_documents_without_overlap(sources, tokenizer):
    seen = [
        documents_in(take(iter(make_mixture(sources, tokenizer, rank=rank, world_size=2)), 60), tokenizer, "finepdfs")
        for rank in range(2)
    ]
    assert len(seen[0]) > 10 and len(seen[1]) > 10
    assert not seen[0] & seen[1]


def test_a_batch_has_no_mask_and_its_labels_are_its_inputs(sources, tokenizer):
    batch = collate_rows(take(iter(make_mixture(sources, tokenizer)), 2))
    assert set(batch) == {"input_ids", "labels", "data_state"}
    assert batch["input_ids"].shape == (2, 32)
    assert (batch["labels"] == batch["input_ids"]).all()
