"""The GRPO reward `correct * 1.0 - length_penalty * 0.01`, as two TRL reward functions with weights [1.0, -0.01]."""

from collections.abc import Callable, Collection, Sequence
from statistics import fmean
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..tokenizer import text_ids
from .formats import ANSWER_FORMATS, Answer, from_chat, parse_answer

REWARD_WEIGHTS = [1.0, -0.01]
Completion = str | list[dict[str, str]]  # text, or the one turn of a conversation, as TRL gives it


class AnswerReward:
    """Parses completions for both rewards; `eos_token_ids` are the tokens that end a completion."""

    columns: tuple[str, ...] = ("options", "answer_format")

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int]) -> None:
        self.tokenizer, self.eos_token_ids = tokenizer, {*eos_token_ids}

    def check(self, rows: Dataset) -> None:
        """Raise `InputError` for a missing column or an unknown format."""
        for name in self.columns:
            if name not in rows.column_names:
                raise InputError(f"{name}: the reward needs this column; the records have {rows.column_names}")
        if unknown := {*rows["answer_format"]} - {*ANSWER_FORMATS}:
            raise InputError(f"answer_format: expected one of {list(ANSWER_FORMATS)}, found {unknown.pop()!r}")

    def answers(
        self,
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]],
        options: Sequence[Sequence[str]],
        answer_format: Sequence[str],
    ) -> list[Answer]:
        """The answers of completions, each in the format of its prompt."""
        return [
            parse_answer(self.text(completion, ids), choices, name, bool(ids) and ids[-1] in self.eos_token_ids)
            for completion, ids, choices, name in zip(completions, completion_ids, options, answer_format, strict=True)
        ]

    def text(self, completion: Completion, ids: Sequence[int]) -> str:
        """A completion's text as it follows the prompt, with the leading space that SentencePiece's decoder drops."""
        if not isinstance(completion, str):
            return from_chat(self.without_end(completion[0].get("content") or "", ids))
        completion = self.without_end(completion, ids)
        first = str([*self.tokenizer.convert_ids_to_tokens(list(ids[:1])), ""][0])
        return f" {completion}" if first.startswith("▁") and not completion.startswith(" ") else completion

    def without_end(self, text: str, ids: Sequence[int]) -> str:
        """A text without the end token's spelling; the end token need not be a special token."""
        end = [token for token in ids[-1:] if token in self.eos_token_ids]
        return text.removesuffix(str(self.tokenizer.decode(end))) if end else text

    def tokens(self, ids: Sequence[int]) -> int:
        """The number of tokens of a completion, without end tokens."""
        return sum(token not in self.eos_token_ids for token in ids)


class Correct(AnswerReward):
    """1.0 if the completion's answer is right, else 0.0; an answer that cannot be parsed is wrong."""

    __name__ = "correct"  # TRL logs rewards under this name
    columns = ("answer", "options", "answer_format")

    def check(self, rows: Dataset) -> None:
        """Also refuse records whose `answer` is not the index of an option."""
        super().check(rows)
        for answer, options in zip(rows["answer"], rows["options"], strict=True):
            check_answer(answer, options)

    def __call__(
        self,
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]],
        answer: Sequence[int],
        options: Sequence[Sequence[str]],
        answer_format: Sequence[str],
        seen: Sequence[bool] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """The reward of each completion.

        Logs the shares of parsed and of contradictory answers, and mean rewards by format and by `seen`, which tells
        whether the question was in pretraining.
        """
        for right, choices in zip(answer, options, strict=True):
            check_answer(right, choices)
        answers = self.answers(completions, completion_ids, options, answer_format)
        rewards = [float(found.option == right) for found, right in zip(answers, answer, strict=True)]
        if log_metric:
            log_metric("medqa/parse_rate", fmean(found.option is not None for found in answers))
            log_metric("medqa/contradictions", fmean(found.contradicts for found in answers))
            groupings: list[Sequence[str]] = [answer_format] if len({*answer_format}) > 1 else []
            if seen:
                groupings.append(["seen" if was_seen else "unseen" for was_seen in seen])
            for groups in groupings:
                for name in sorted({*groups}):
                    of_group = [reward for reward, group in zip(rewards, groups, strict=True) if group == name]
                    log_metric(f"rewards/correct/{name}", fmean(of_group))
        return rewards


def check_answer(answer: Any, options: Sequence[str]) -> None:
    """Raise `InputError` if an answer is not the index of one of the options."""
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        expected = f"the index of the right option, from 0 to {len(options) - 1}"
        raise InputError(f"answer: expected {expected}, found {answer!r}; for a letter use 'ABCD'.index(letter)")


class LengthPenalty(AnswerReward):
    """`max(0, (min_tokens - n) / min_tokens)` for an answer of n tokens without the end token; 0 turns it off.

    In the format `reasoned` n counts the reasoning only. The original specification gives no unit; the purpose it
    names is to prevent degenerate *short* answers: a bare letter, or an answer without reasons. The penalty is in [0,
    1], so with its weight of -0.01 a right answer is always worth more than a wrong one.
    """

    __name__ = "length_penalty"

    def __init__(self, min_tokens: int, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int]) -> None:
        super().__init__(tokenizer, eos_token_ids)
        self.min_tokens = min_tokens

    def __call__(
        self,
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]],
        options: Sequence[Sequence[str]],
        answer_format: Sequence[str],
        **kwargs: Any,
    ) -> list[float]:
        """The penalty of each completion, from 0 to 1."""
        if self.min_tokens == 0:
            return [0.0] * len(completion_ids)
        answers = self.answers(completions, completion_ids, options, answer_format)
        lengths = [
            self.reasoning_tokens(found, ids) if name == "reasoned" else self.tokens(ids)
            for found, ids, name in zip(answers, completion_ids, answer_format, strict=True)
        ]
        return [max(0.0, (self.min_tokens - length) / self.min_tokens) for length in lengths]

    def reasoning_tokens(self, answer: Answer, ids: Sequence[int]) -> int:
        """The number of tokens before the answer, or of the whole completion if it has no answer."""
        if answer.option is None:
            return self.tokens(ids)
        return len(text_ids(self.tokenizer, [answer.reasoning])[0])
