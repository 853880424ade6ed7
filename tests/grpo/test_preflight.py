"""What is said before the first step, from samples whose answers are known."""

import pytest
import torch

from modeling_pure.grpo.preflight import PROMPTS, preflight, summarise


def sample(group: int, letter: int | None, answer: int, length: int = 3, clipped: bool = False) -> dict:
    return {
        "group": (0, group),
        "letter": letter,
        "answer": answer,
        "length": length,
        "clipped": clipped,
        "kept": 2 * length,
    }


def test_samples_are_counted():
    found = summarise(
        [
            sample(0, 0, 0),
            sample(0, 1, 0),
            sample(1, 2, 2),
            sample(1, 2, 2),
            sample(2, None, 3, 6, True),
            sample(2, 0, 3),
        ]
    )
    assert (found.groups, found.completions, found.correct) == (3, 6, 3)
    assert found.parsed == pytest.approx(5 / 6)
    assert found.letters == {"A": 2, "B": 1, "C": 2, "D": 0}
    assert found.no_spread == pytest.approx(2 / 3)
    assert found.clipped == pytest.approx(1 / 6)
    assert found.mean_length == 3.5
    assert found.kept_tokens == 2
    assert found.always_a == pytest.approx(1 / 3)
    assert found.warnings() == []
    assert found.facts()["right"].startswith("50.0% (18.8% to 81.2%); always A: 33.3%, chance: 25.0%")


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([sample(i, 1, 1) for i in range(40)], "known by heart"),
        ([sample(i // 2, 0, 1) for i in range(40)], "no sample is right"),
        ([sample(i // 2, None, 1) for i in range(40)], "most completions are no answer"),
        ([sample(i // 2, i % 2, 1, clipped=True) for i in range(40)], "most completions are cut off"),
        ([sample(i // 2, i // 2 % 2, 1) for i in range(40)], "in most groups all samples earn the same"),
    ],
)
def test_what_stands_in_the_way_is_said_in_plain_words(samples, words):
    assert any(words in warning for warning in summarise(samples).warnings())


def test_it_samples_whole_groups_and_leaves_the_random_numbers_alone(make_trainer):
    trainer = make_trainer()
    state = torch.get_rng_state()
    found = preflight(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.groups, found.completions) == (PROMPTS, PROMPTS * trainer.num_generations)
    assert found.mean_length <= trainer.max_completion_length
    assert 1 <= found.kept_tokens <= 401
