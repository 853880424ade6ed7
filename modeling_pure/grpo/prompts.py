"""Prompts for GRPO: every pass asks the questions in another order, with their options in another order."""

import random
from math import ceil

from datasets import Dataset

from ..medqa.prompt import format_prompt
from ..medqa.questions import Question


def prompt_dataset(questions: list[Question], num_prompts: int, seed: int) -> Dataset:
    """At least `num_prompts` prompts in the order in which they are trained on.

    The options of a question are shuffled once per pass, so all completions of a group answer the same prompt, and a
    constant letter earns a quarter of the reward.

    Returns:
        a data set with the columns `prompt`, `answer` (index of the right letter) and `digest` of the question.
    """
    rows = []
    for number in range(ceil(num_prompts / len(questions))):
        rng = random.Random(f"grpo {seed} {number}")
        for question in rng.sample(questions, len(questions)):
            shuffled = question.shuffled(rng)
            rows.append({"prompt": format_prompt(shuffled), "answer": shuffled.answer, "digest": question.digest})
    return Dataset.from_list(rows)
