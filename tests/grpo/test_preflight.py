"""The summary before the first step, from samples with known answers."""

import pytest
import torch

from modeling_pure.grpo.preflight import PROMPTS, Sample, first_prompts, preflight, summarise
from modeling_pure.grpo.prompts import PromptSettings, prompt_dataset
from modeling_pure.grpo.rollout import Rollout
from tests.conftest import numbers_in, with_chat_template


def sample(
    group: int,
    option: int | None,
    answer: int,
    length: int = 3,
    clipped: bool = False,
    answer_format: str = "letter",
    contradicts: bool = False,
) -> Sample:
    return Sample(answer_format, (0, group), option, contradicts, answer, length, clipped, kept=2 * length)


def test_samples_are_counted():
    [found] = summarise(
        [
            sample(0, 0, 0),
            sample(0, 1, 0),
            sample(1, 2, 2),
            sample(1, 2, 2),
            sample(2, None, 3, 6, True),
            sample(2, 0, 3, contradicts=True),
        ]
    )
    assert (found.groups, found.completions, found.correct) == (3, 6, 3)
    assert found.parsed == pytest.approx(5 / 6)
    assert found.contradictions == pytest.approx(1 / 6)
    assert found.letters == {"A": 2, "B": 1, "C": 2, "D": 0}
    assert found.no_spread == pytest.approx(2 / 3)
    assert found.clipped == pytest.approx(1 / 6)
    assert found.mean_length == 3.5
    assert found.kept_tokens == 2
    assert found.always_a == pytest.approx(1 / 3)
    assert found.warnings() == []
    # Accuracy with its interval, always A, chance.
    assert numbers_in(found.facts()["right"]) == ["50.0", "18.8", "81.2", "33.3", "25.0"]


def test_each_obstacle_to_learning_has_a_warning():
    def warned(letter, clipped: bool = False) -> set[str]:
        """The warnings for 20 groups of two; the right letter is 1."""
        [found] = summarise([sample(i // 2, letter(i), 1, clipped=clipped) for i in range(40)])
        return {*found.warnings()}

    no_spread, cut_off = warned(lambda i: i // 2 % 2), warned(lambda i: i % 2, clipped=True)
    all_right, none_right, unreadable = (warned(lambda i, letter=letter: letter) for letter in (1, 0, None))
    assert warned(lambda i: i % 2) == set()
    assert len(no_spread) == len(cut_off) == 1
    assert "max_completion_length" in min(cut_off)
    assert no_spread < all_right
    assert no_spread < none_right < unreadable
    assert [len(each) for each in (all_right, none_right, unreadable)] == [2, 2, 3]
    assert len(cut_off | all_right | unreadable) == 5


def test_each_format_is_counted_separately():
    texts = [sample(0, 0, 0, answer_format="text"), sample(0, None, 0, answer_format="text")]
    found = summarise([*texts, sample(1, 1, 1), sample(1, 1, 1), sample(2, None, 0, answer_format="reasoned")])
    assert [each.answer_format for each in found] == ["letter", "text", "reasoned"]
    assert [each.completions for each in found] == [2, 2, 1]
    assert [each.accuracy for each in found] == [1, 0.5, 0]
    assert [each.no_spread for each in found] == [1, 0, 1]


def test_it_samples_full_groups_and_leaves_the_random_state_unchanged(make_trainer):
    trainer = make_trainer()
    state = torch.get_rng_state()
    [found] = preflight(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.groups, found.completions) == (PROMPTS, PROMPTS * trainer.num_generations)
    assert found.mean_length <= trainer.max_completion_length
    assert 1 <= found.kept_tokens <= 401


@pytest.mark.parametrize("chat", [False, True])
def test_completions_are_read_in_the_format_of_their_prompt(chat, make_trainer, questions, tokenizer):
    settings = PromptSettings({"letter": 0.5, "text": 0.3, "reasoned": 0.2}, chat)
    prompts = prompt_dataset(questions, 120, seed=0, settings=settings)
    share = PROMPTS // 3
    rows = first_prompts(prompts)
    assert [row["answer_format"] for row in rows] == ["letter"] * share + ["reasoned"] * share + ["text"] * share

    def answer(row: dict, right: bool) -> str:
        option = row["answer"] if right else (row["answer"] + 1) % 4
        by_text = f" {row['options'][option]} ({'ABCD'[row['answer']]})"
        texts = {"letter": f" {'ABCD'[option]}.", "text": by_text, "reasoned": f" As it is.\nAnswer:{by_text}"}
        return texts[row["answer_format"]]

    trainer = make_trainer(chat_tokenizer=with_chat_template(tokenizer)) if chat else make_trainer()
    trainer.train_dataset, asked = prompts, iter(rows)

    def samples(prompt_ids: list[list[int]], uniform: torch.Tensor) -> Rollout:
        """The first two of each group are right."""
        texts = [answer(row, i < 2) for _, row in zip(prompt_ids[::4], asked, strict=False) for i in range(4)]
        ids = [[*tokenizer(text.lstrip() if chat else text).input_ids, tokenizer.eos_token_id] for text in texts]
        return Rollout(ids, [], [[1] * len(row) for row in ids], None)

    trainer.sample = samples
    for found in preflight(trainer):
        assert (found.groups, found.parsed, found.accuracy, found.no_spread) == (share, 1, 0.5, 0)
        assert found.contradictions == (0 if found.answer_format == "letter" else 0.5)
