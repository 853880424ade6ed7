"""A question's split depends on its text only."""

import random

from modeling_pure.medqa.questions import select_split, split_of
from tests.conftest import make_question


def many(n: int = 4000):
    rng = random.Random(7)
    return [make_question(rng, number) for number in range(n)]


def test_splits_have_their_shares():
    questions = many()
    counts = {split: len(select_split(questions, split, grpo_holdout=0.5)) for split in ("dev", "holdout", "train")}
    assert sum(counts.values()) == len(questions)
    assert abs(counts["dev"] / 4000 - 0.1) < 0.02
    assert abs(counts["holdout"] / 4000 - 0.45) < 0.03


def test_no_holdout_by_default():
    assert select_split(many(500), "holdout") == []


def test_dev_does_not_depend_on_the_holdout():
    questions = many(1000)
    assert select_split(questions, "dev", grpo_holdout=0.9) == select_split(questions, "dev")


def test_options_and_outer_blanks_do_not_move_a_question():
    question = many(1)[0]
    shuffled = question.shuffled(random.Random(0))
    padded = type(question)(f"  {question.question}\n", question.options, question.answer)
    assert split_of(question, 0.3) == split_of(shuffled, 0.3) == split_of(padded, 0.3)
