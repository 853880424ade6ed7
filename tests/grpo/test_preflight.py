"""What is said before the first step, from samples whose answers are known."""

import pytest
import torch

from modeling_pure.grpo.preflight import PROMPTS, preflight, summarise
from tests.conftest import numbers_in


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
    # Accuracy with its interval, always A, chance.
    assert numbers_in(found.facts()["right"]) == ["50.0", "18.8", "81.2", "33.3", "25.0"]


def test_each_thing_that_stands_in_the_way_has_a_warning_of_its_own():
    def warned(letter, clipped: bool = False) -> set[str]:
        """Of 20 groups of two; the right letter is 1."""
        return {*summarise([sample(i // 2, letter(i), 1, clipped=clipped) for i in range(40)]).warnings()}

    no_spread, cut_off = warned(lambda i: i // 2 % 2), warned(lambda i: i % 2, clipped=True)
    all_right, none_right, unreadable = (warned(lambda i, letter=letter: letter) for letter in (1, 0, None))
    assert warned(lambda i: i % 2) == set()
    assert len(no_spread) == len(cut_off) == 1
    assert "max_completion_length" in min(cut_off)
    assert no_spread < all_right
    assert no_spread < none_right < unreadable
    assert [len(each) for each in (all_right, none_right, unreadable)] == [2, 2, 3]
    assert len(cut_off | all_right | unreadable) == 5


def test_it_samples_whole_groups_and_leaves_the_random_numbers_alone(make_trainer):
    trainer = make_trainer()
    state = torch.get_rng_state()
    found = preflight(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.groups, found.completions) == (PROMPTS, PROMPTS * trainer.num_generations)
    assert found.mean_length <= trainer.max_completion_length
    assert 1 <= found.kept_tokens <= 401
