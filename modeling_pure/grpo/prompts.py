"""Prompts for GRPO: every pass asks the questions in another order, with their options in another order."""

import random
from math import ceil

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..medqa.formats import format_prompt
from ..medqa.questions import Question
from ..medqa.splits import split_of


def questions_that_fit(
    questions: list[Question], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[Question]:
    """The questions whose prompts leave room for a completion; says how many do not.

    Raises:
        InputError: none does.
    """
    fitting = [question for question in questions if len(tokenizer(format_prompt(question)).input_ids) <= max_tokens]
    if not fitting:
        raise InputError(f"max_completion_length: leaves {max_tokens} tokens of the context, too few for any prompt")
    if len(fitting) < len(questions) and PartialState().is_main_process:
        print(f"left out {len(questions) - len(fitting)} questions of more than {max_tokens} tokens")
    return fitting


def prompt_dataset(questions: list[Question], num_prompts: int, seed: int, grpo_holdout: float = 0.0) -> Dataset:
    """At least `num_prompts` prompts in the order in which they are trained on.

    The options of a question are shuffled once per pass, so all completions of a group answer the same prompt, and a
    constant letter earns a quarter of the reward.

    Returns:
        a data set with the columns `prompt`, `answer` (index of the right letter) and `digest` of the question; where
        `grpo_holdout` keeps questions from pretraining, also `seen`: whether pretraining had this one.
    """
    rows = []
    for number in range(ceil(num_prompts / len(questions))):
        rng = random.Random(f"grpo {seed} {number}")
        for question in rng.sample(questions, len(questions)):
            shuffled = question.shuffled(rng)
            row = {
                "prompt": format_prompt(shuffled),
                "answer": shuffled.answer,
                "options": list(shuffled.options),
                "answer_format": "letter",
                "digest": question.digest,
            }
            if grpo_holdout:
                row["seen"] = split_of(question, grpo_holdout) == "train"
            rows.append(row)
    return Dataset.from_list(rows)
