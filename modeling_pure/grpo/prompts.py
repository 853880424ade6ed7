"""Prompts for GRPO; questions and their options are reshuffled every epoch."""

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

Prompt = str | list[dict[str, str]]  # text, or a conversation of one turn
TOKENIZER_BATCH = 1000  # prompts


@dataclass(frozen=True)
class PromptSettings:
    """How questions become prompts.

    Attributes:
        shares: answer format -> its share; they add up to 1.
        chat: use the tokenizer's chat template.
        with_answers: add the target answer to each row, for cross entropy.
    """

    shares: dict[str, float]
    chat: bool = False
    with_answers: bool = False

    @classmethod
    def of(cls, args: GRPOScriptArguments, config: PreTrainedConfig) -> "PromptSettings":
        """The settings of the arguments; the default format is the one that the checkpoint was taught, or letter."""
        shares = args.answer_formats or {headline_format(taught_formats(config)): 1.0}
        return cls(cast(dict[str, float], shares), args.chat, args.algorithm == "sft")  # a string has been parsed

    @property
    def best_metric(self) -> str:
        """The metric for the best checkpoint: dev accuracy, or reward if dev accuracy uses another format."""
        headline = headline_format(self.shares)
        if not self.with_answers and (self.chat or headline == "reasoned"):
            return "eval_rewards/correct/mean"
        return "eval_medqa_accuracy" if headline == "letter" else "eval_medqa_text_accuracy"

    def __str__(self) -> str:
        return describe_formats(self.shares) + (" in the chat template" if self.chat else "")

    def warnings(self, config: PreTrainedConfig) -> list[str]:
        """Warnings about formats that the checkpoint was not taught, or that conflict."""
        warnings = [text for name in self.shares if (text := warn_untaught(config, name))]
        if {"letter", "text"} <= {*self.shares} and not self.with_answers:
            warnings.append("WARNING: letter and text have the same prompt, but reward different answers")
        return warnings

    def text(self, answer_format: str, tokenizer: PreTrainedTokenizerBase, question: Question) -> str:
        """A question's prompt as text."""
        prompt = format_prompt(question, answer_format)
        return chat_prompt(tokenizer, prompt) if self.chat else prompt


def prompt_dataset(
    questions: list[Question],
    num_prompts: int,
    seed: int,
    grpo_holdout: float = 0.0,
    settings: PromptSettings | None = None,
) -> Dataset:
    """At least `num_prompts` prompts in training order.

    A question's options are shuffled once per epoch, so that a constant letter earns a quarter of the reward. Formats
    are drawn from their own random stream, so that they do not affect the order.

    Args:
        settings: default: letters.

    Returns:
        a dataset with the columns `prompt`, `answer` (index of the right option), `options`, `answer_format` and
        `digest` of the question; with `grpo_holdout` also `seen`, whether pretraining used the question; with
        `settings.with_answers` also `target`, the right answer.
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
    """A row of `prompt_dataset`; for cross entropy, only questions with an explanation become `reasoned`."""
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
    tokenize: Callable[[list[Prompt]], Any],
    config: PreTrainedConfig,
    context: int,
    room: int,
) -> None:
    """Check the rows before the first step; warn about prompts that leave less than `room` tokens of the context.

    Raises:
        InputError: such prompts exist and the model has no position embeddings beyond its context, or the MedQA
            rewards cannot read the answers.
    """
    for reward in rewards:
        if isinstance(reward, AnswerReward):
            reward.check(rows)
    parts = (rows[start : start + TOKENIZER_BATCH]["prompt"] for start in range(0, len(rows), TOKENIZER_BATCH))
    cut_short = sum(len(ids) > context - room for part in parts for ids in tokenize(part)[0])
    if cut_short:
        found = f"{cut_short} of {len(rows)} prompts leave fewer than {room} tokens for the completion"
        if hasattr(config, "max_position_embeddings") and getattr(config, "rope_parameters", None) is None:
            raise InputError(
                f"max_completion_length: {found}, and the model has no position embeddings beyond its context"
            )
        PartialState().print(
            f"WARNING: max_completion_length: {found}; completions may run past the context of {context}"
        )


def check_prompt_ids(prompt_ids: list[list[int]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `InputError` if a prompt is empty or fills the context."""
    context = context_length(model.config, tokenizer)
    for ids in prompt_ids:
        if not ids:
            raise InputError("prompt: empty; at least one token is required")
        if len(ids) >= context:
            raise InputError(f"prompt: its {len(ids)} tokens fill the context of {context}; shorten or remove it")
