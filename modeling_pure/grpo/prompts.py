"""Prompts for GRPO: every epoch asks the questions in another order, with their options in another order."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..errors import InputError
from ..medqa.formats import (
    chat_message,
    chat_prompt,
    describe_formats,
    draw_format,
    format_answer,
    format_prompt,
    headline_format,
    shuffled_for,
    taught_formats,
    warn_untaught,
)
from ..medqa.passages import Library, fit_passages
from ..medqa.questions import Question, split_of
from ..tokenizer import prompt_ids, text_ids

Prompt = str | list[dict[str, str]]  # text, or the one turn of a conversation


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Attributes:
        shares: of the answer formats; they add up to 1.
        chat: in the tokenizer's chat template.
        with_answers: rows also hold what the model is taught to answer, as cross entropy needs and GRPO does not.
    """

    shares: dict[str, float]
    chat: bool = False
    with_answers: bool = False

    @property
    def headline(self) -> str:
        """The format that a run is judged by."""
        return headline_format(self.shares)

    @property
    def best_metric(self) -> str:
        """What the best checkpoint is chosen by: dev accuracy, or rewards if only sampling asks as training does."""
        if not self.with_answers and (self.chat or self.headline == "reasoned"):
            return "eval_rewards/correct/mean"
        return "eval_medqa_accuracy" if self.headline == "letter" else "eval_medqa_text_accuracy"

    def __str__(self) -> str:
        return describe_formats(self.shares) + (" in the chat template" if self.chat else "")

    def warnings(self, config: PreTrainedConfig) -> list[str]:
        """Formats that a checkpoint was not taught, or that stand in each other's way."""
        untaught = [warn_untaught(config, name) for name in self.shares]
        warnings = [text for text in untaught if text]
        if {"letter", "text"} <= {*self.shares} and not self.with_answers:
            warnings.append(
                "WARNING: letter and text have the same prompt; an answer that one rewards, the other does not"
            )
        return warnings

    def prompt(self, question: Question, answer_format: str) -> Prompt:
        """A prompt as TRL takes it."""
        text = format_prompt(question, answer_format)
        return chat_message(text) if self.chat else text

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[Callable[[Question], str]]:
        """Functions that give a question's prompt as the model reads it, one for each format."""

        def text(name: str, question: Question) -> str:
            prompt = format_prompt(question, name)
            return chat_prompt(tokenizer, prompt) if self.chat else prompt

        return [partial(text, name) for name in self.shares]

    def length(self, question: Question, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens of a question's longest prompt."""
        texts = [text(question) for text in self.texts(tokenizer)]
        return max(map(len, prompt_ids(tokenizer, texts, templated=self.chat)))


BY_LETTER = Asking({"letter": 1.0})


def default_formats(config: PreTrainedConfig) -> dict[str, float]:
    """The format to ask in that a checkpoint was taught; letters for one that does not say."""
    return {headline_format(taught_formats(config)): 1.0}


def open_books(
    library: Library,
    number: int,
    splits: tuple[list[Question], list[Question]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    asking: Asking,
) -> tuple[list[Question], list[Question]]:
    """Train and dev questions with their best passages, as many as fit into prompts of `max_tokens` tokens."""

    def fit(question: Question) -> Question:
        for text in asking.texts(tokenizer):
            question = fit_passages(question, tokenizer, max_tokens, text, asking.chat)
        return question

    train, dev = ([fit(question) for question in library.retrieve(split, number)] for split in splits)
    return train, dev


def questions_that_fit(
    questions: list[Question], tokenizer: PreTrainedTokenizerBase, max_tokens: int, asking: Asking = BY_LETTER
) -> list[Question]:
    """The questions whose prompts, in whatever format, leave room for a completion; says how many do not.

    Raises:
        InputError: none does.
    """
    fitting = [question for question in questions if asking.length(question, tokenizer) <= max_tokens]
    if not fitting:
        raise InputError(f"max_completion_length: leaves {max_tokens} tokens of the context, too few for any prompt")
    if len(fitting) < len(questions):
        say(f"left out {len(questions) - len(fitting)} questions of more than {max_tokens} tokens")
    return fitting


def teachable(
    questions: list[Question], tokenizer: PreTrainedTokenizerBase, max_tokens: int, asking: Asking
) -> list[Question]:
    """The questions whose answers can be taught: explanations that are too long are dropped, and counted.

    Args:
        max_tokens: of an answer, with its end-of-text token.

    Raises:
        InputError: there are only answers with reasons to teach, and no question has a short enough explanation.
    """
    if not asking.with_answers or "reasoned" not in asking.shares:
        return questions
    texts = [format_answer(question, "reasoned") if question.explanation else "" for question in questions]
    too_long = [len(ids) >= max_tokens for ids in text_ids(tokenizer, texts)]
    if any(too_long):
        say(f"dropped {sum(too_long)} explanations that max_completion_length {max_tokens} would cut off")
    kept = [replace(q, explanation="") if cut else q for q, cut in zip(questions, too_long, strict=True)]
    if {*asking.shares} != {"reasoned"}:
        return kept
    explained = [question for question in kept if question.explanation]
    if not explained:
        raise InputError(
            f"answer_formats: no question has an explanation of at most {max_tokens} tokens that could be taught; "
            "take text or letter, raise max_completion_length, or take --algorithm grpo"
        )
    if len(explained) < len(kept):
        say(f"left out {len(kept) - len(explained)} questions without an explanation to teach")
    return explained


def prompt_dataset(
    questions: list[Question],
    num_prompts: int,
    seed: int,
    grpo_holdout: float = 0.0,
    asking: Asking = BY_LETTER,
) -> Dataset:
    """At least `num_prompts` prompts in the order in which they are trained on.

    The options of a question are shuffled once per epoch, so all completions of a group answer the same prompt, and a
    constant letter earns a quarter of the reward. Formats are drawn apart, so they change no order.

    Returns:
        a data set with the columns `prompt`, `answer` (index of the right option), `options`, `answer_format` and
        `digest` of the question; where `grpo_holdout` keeps questions from pretraining, also `seen`: whether
        pretraining had this one; and `target`, the right answer, if `asking` has answers.
    """
    rows = []
    for number in range(ceil(num_prompts / len(questions))):
        rng = random.Random(f"grpo {seed} {number}")
        formats = random.Random(f"grpo formats {seed} {number}")
        for question in rng.sample(questions, len(questions)):
            row = prompt_row(question, asking, rng, formats)
            if grpo_holdout:
                row["seen"] = split_of(question, grpo_holdout) == "train"
            rows.append(row)
    return Dataset.from_list(rows)


def prompt_row(question: Question, asking: Asking, rng: random.Random, formats: random.Random) -> dict[str, Any]:
    """A row of `prompt_dataset`; GRPO asks any question for reasons, cross entropy those that have an explanation."""
    if asking.with_answers:
        answer_format = draw_format(asking.shares, question, formats)
        shuffled = shuffled_for(question, answer_format, rng)
    else:
        answer_format = formats.choices([*asking.shares], [*asking.shares.values()])[0]
        shuffled = question.shuffled(rng)
    row = {
        "prompt": asking.prompt(shuffled, answer_format),
        "answer": shuffled.answer,
        "options": list(shuffled.options),
        "answer_format": answer_format,
        "digest": question.digest,
    }
    return row | ({"target": format_answer(shuffled, answer_format)} if asking.with_answers else {})


def say(text: str) -> None:
    """Print on the first process."""
    if PartialState().is_main_process:
        print(text)
