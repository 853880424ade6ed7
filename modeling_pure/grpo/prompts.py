"""Prompts for GRPO: every epoch asks the questions in another order, with their options in another order."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, cast

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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
from ..medqa.log_likelihood import context_length
from ..medqa.questions import Question, split_of
from ..medqa.rewards import AnswerReward
from .arguments import GRPOScriptArguments

Prompt = str | list[dict[str, str]]  # text, or the one turn of a conversation
TOGETHER = 1000  # prompts that are tokenized at once


@dataclass(frozen=True)
class PromptSettings:
    """How questions become prompts.

    Attributes:
        shares: of the answer formats; they add up to 1.
        chat: in the tokenizer's chat template.
        with_answers: rows also hold what the model is taught to answer, as cross entropy needs and GRPO does not.
    """

    shares: dict[str, float]
    chat: bool = False
    with_answers: bool = False

    @classmethod
    def of(cls, args: GRPOScriptArguments, config: PreTrainedConfig) -> "PromptSettings":
        """What the arguments say; by default the format that a checkpoint was taught, or letters."""
        shares = args.answer_formats or {headline_format(taught_formats(config)): 1.0}
        return cls(cast(dict[str, float], shares), args.chat, args.algorithm == "sft")  # a string has been parsed

    @property
    def best_metric(self) -> str:
        """What the best checkpoint is chosen by: dev accuracy, or rewards if only sampling asks as training does."""
        headline = headline_format(self.shares)
        if not self.with_answers and (self.chat or headline == "reasoned"):
            return "eval_rewards/correct/mean"
        return "eval_medqa_accuracy" if headline == "letter" else "eval_medqa_text_accuracy"

    def __str__(self) -> str:
        return describe_formats(self.shares) + (" in the chat template" if self.chat else "")

    def warnings(self, config: PreTrainedConfig) -> list[str]:
        """Formats that a checkpoint was not taught, or that stand in each other's way."""
        warnings = [text for name in self.shares if (text := warn_untaught(config, name))]
        if {"letter", "text"} <= {*self.shares} and not self.with_answers:
            warnings.append(
                "WARNING: letter and text have the same prompt; an answer that one rewards, the other does not"
            )
        return warnings

    def text(self, answer_format: str, tokenizer: PreTrainedTokenizerBase, question: Question) -> str:
        """A question's prompt as the model reads it."""
        prompt = format_prompt(question, answer_format)
        return chat_prompt(tokenizer, prompt) if self.chat else prompt


def prompt_dataset(
    questions: list[Question],
    num_prompts: int,
    seed: int,
    grpo_holdout: float = 0.0,
    settings: PromptSettings | None = None,
) -> Dataset:
    """At least `num_prompts` prompts in the order in which they are trained on.

    The options of a question are shuffled once per epoch, so all completions of a group answer the same prompt, and a
    constant letter earns a quarter of the reward. Formats are drawn apart, so they change no order.

    Args:
        settings: by default letters.

    Returns:
        a data set with the columns `prompt`, `answer` (index of the right option), `options`, `answer_format` and
        `digest` of the question; where `grpo_holdout` keeps questions from pretraining, also `seen`: whether
        pretraining had this one; and `target`, the right answer, with `settings.with_answers`.
    """
    rows = []
    for number in range(ceil(num_prompts / len(questions))):
        rng = random.Random(f"grpo {seed} {number}")
        formats = random.Random(f"grpo formats {seed} {number}")
        for question in rng.sample(questions, len(questions)):
            row = prompt_row(question, settings or PromptSettings({"letter": 1.0}), rng, formats)
            if grpo_holdout:
                row["seen"] = split_of(question, grpo_holdout) == "train"
            rows.append(row)
    return Dataset.from_list(rows)


def prompt_row(
    question: Question, settings: PromptSettings, rng: random.Random, formats: random.Random
) -> dict[str, Any]:
    """A row of `prompt_dataset`; GRPO asks any question for reasons, cross entropy those that have an explanation."""
    if settings.with_answers:
        answer_format = draw_format(settings.shares, question, formats)
        shuffled = shuffled_for(question, answer_format, rng)
    else:
        answer_format = formats.choices([*settings.shares], [*settings.shares.values()])[0]
        shuffled = question.shuffled(rng)
    text = format_prompt(shuffled, answer_format)
    row = {
        "prompt": chat_message(text) if settings.chat else text,
        "answer": shuffled.answer,
        "options": list(shuffled.options),
        "answer_format": answer_format,
        "digest": question.digest,
    }
    return row | ({"target": format_answer(shuffled, answer_format)} if settings.with_answers else {})


# ---- prompts given from Python --------------------------------------------------------------------------------------


def check_training_rows(
    rows: Dataset,
    rewards: list[Any],
    tokenize: Callable[[list[Prompt]], list[list[int]]],
    config: PreTrainedConfig,
    context: int,
    room: int,
) -> None:
    """Check the rows before the first step; prints how many prompts leave less than `room` tokens of the context.

    Raises:
        InputError: there are some and the model has no positions past its context, or the MedQA rewards cannot read
            the answers.
    """
    for reward in rewards:
        if isinstance(reward, AnswerReward):
            reward.check(rows)
    parts = (rows[start : start + TOGETHER]["prompt"] for start in range(0, len(rows), TOGETHER))
    cut_short = sum(len(ids) > context - room for part in parts for ids in tokenize(part))
    if cut_short:
        found = f"{cut_short} of {len(rows)} prompts leave less than {room} tokens of it"
        if hasattr(config, "max_position_embeddings") and getattr(config, "rope_parameters", None) is None:
            raise InputError(f"max_completion_length: {found}, and the model has no positions past its context")
        PartialState().print(
            f"WARNING: max_completion_length: {found}, so that their completions may run past the context"
        )


def check_prompt_ids(prompt_ids: list[list[int]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `InputError` if a prompt has no token, or as many as the context."""
    context = context_length(model.config, tokenizer)
    for ids in prompt_ids:
        if not ids:
            raise InputError("prompt: is empty; the first token of a completion is drawn after one of the prompt")
        if len(ids) >= context:
            raise InputError(
                f"prompt: its {len(ids)} tokens fill the context of {context}; shorten it, or leave it out"
            )
