"""A model with the settings that scorers need, and the records that they give."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tokenizer import prompt_ids, text_ids
from .formats import chat_prompt, format_stem, text_continuation
from .formulations import BY_LETTER, Formulation
from .log_likelihood import context_length
from .questions import Question
from .tasks import Task

Record = dict[str, Any]  # the result of one question, as plain JSON; each scorer documents its keys
Item = tuple[int, Record]  # with the question's index


class NotFinite(Exception):
    """Logits or log-likelihoods of question `index` are not finite: an argmax over them would be an answer."""

    def __init__(self, index: int) -> None:
        super().__init__(f"question {index}")
        self.index = index


@dataclass(frozen=True)
class Batches:
    """Questions in batches by their indices, and the function that asks one batch.

    Rounding depends on the other rows of a forward pass, so a batch is never cut: not for the processes that share the
    batches, and not for what an unfinished evaluation still has to ask.
    """

    indices: list[list[int]]
    ask: Callable[[list[int]], list[Record]]

    def __iter__(self) -> Iterator[Item]:
        return self.records(self.indices)

    def records(self, indices: list[list[int]]) -> Iterator[Item]:
        """Records of some batches, in their order, on every process; each round, every process asks one batch.

        Raises:
            NotFinite: on all processes alike.
        """
        rank, world = PartialState().process_index, PartialState().num_processes
        for start in range(0, len(indices), world):
            of_round = indices[start : start + world]
            found: list[list[Record] | int] = gather_object([self._ask(batch) for batch in of_round[rank : rank + 1]])
            for batch, records in zip(of_round, found, strict=True):
                if isinstance(records, int):
                    raise NotFinite(records)
                yield from zip(batch, records, strict=True)

    def _ask(self, batch: list[int]) -> list[Record] | int:
        try:
            return self.ask(batch)
        except NotFinite as error:
            return error.index


@dataclass(frozen=True)
class Sampling:
    """How `generate` writes and rewards completions.

    Args:
        num_samples: completions of each prompt; 0 takes the likeliest token at each step.
        temperature, top_p: of sampled completions.
        max_new_tokens: of a completion.
        length_penalty_min_tokens: of the reward, as GRPO has it.
    """

    num_samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 32
    length_penalty_min_tokens: int = 4
    seed: int = 0


GREEDY = Sampling()


@dataclass(frozen=True)
class Asked:
    """A model, and how it is asked.

    Args:
        batch_size: rows in a forward pass; of sampled completions always those of one question.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    batch_size: int = 16
    formulation: Formulation = BY_LETTER
    sampling: Sampling = GREEDY

    def prompt(self, question: Question) -> str:
        """What the model reads before it answers."""
        if self.formulation.answer_format is None:
            return format_stem(question)
        text = self.task.ask(question, self.formulation.answer_format)
        return chat_prompt(self.tokenizer, text) if self.formulation.chat else text

    def encode(self, texts: list[str], room: int = 0) -> tuple[list[list[int]], list[bool]]:
        """Token ids, cut from the left to the model's context less `room`, and which were cut."""
        limit = context_length(self.model.config, self.tokenizer) - room
        ids = prompt_ids(self.tokenizer, texts, templated=self.formulation.chat)
        return [row[-limit:] for row in ids], [len(row) > limit for row in ids]

    def longest_prompt(self, question: Question) -> int:
        """Tokens that a question's prompt may have, so that nothing of it is cut."""
        context = context_length(self.model.config, self.tokenizer)
        if self.formulation.scorer == "generate":
            return context - self.sampling.max_new_tokens
        ids = text_ids(self.tokenizer, self.continuations(question))
        return context + 1 - max(map(len, ids))  # the last token is predicted, not read

    def continuations(self, question: Question) -> list[str]:
        """What is scored after the prompt: a text for each option."""
        if self.formulation.scorer == "letter":
            return [f" {label}" for label in self.task.labels]
        if self.formulation.scorer == "text":
            return [text_continuation(option) for option in question.options]
        return [f" {option}" for option in question.options]
