"""The GRPO reward `correct * 1.0 - length_penalty * 0.01`, as two TRL reward functions with weights [1.0, -0.01]."""

from collections.abc import Callable
from typing import Any

from .prompt import parse_answer

REWARD_WEIGHTS = [1.0, -0.01]


def correct(
    completions: list[str],
    answer: list[int],
    seen: list[bool] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    """1.0 where the completion's letter is the right one, else 0.0; what cannot be parsed is wrong.

    Logs the share of completions that could be parsed as `medqa/parse_rate` and, where `seen` says which questions
    pretraining had, the rewards of the two kinds apart.
    """
    parsed = [parse_answer(completion) for completion in completions]
    if log_metric:
        log_metric("medqa/parse_rate", sum(letter is not None for letter in parsed) / len(parsed))
    rewards = [float(letter == right) for letter, right in zip(parsed, answer, strict=True)]
    if log_metric and seen:
        for kind, is_seen in (("seen", True), ("unseen", False)):
            of_kind = [reward for reward, had in zip(rewards, seen, strict=True) if had == is_seen]
            if of_kind:
                log_metric(f"rewards/correct/{kind}", sum(of_kind) / len(of_kind))
    return rewards


class LengthPenalty:
    """`max(0, (min_tokens - n) / min_tokens)` with n = the answer's tokens without the end-of-text token.

    The seed document calls it a length penalty, gives no unit and says that it prevents degenerate *short* answers;
    the degenerate answer in our format is a bare letter, one token. It lies in [0, 1], so at a weight of -0.01 it
    never makes a right answer worth less than a wrong one. `min_tokens` 0 turns it off.
    """

    __name__ = "length_penalty"  # TRL logs a reward function under its name

    def __init__(self, min_tokens: int, eos_token_id: int) -> None:
        self.min_tokens = min_tokens
        self.eos_token_id = eos_token_id

    def __call__(self, completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        """The penalty of each completion, from 0 to 1."""
        if self.min_tokens == 0:
            return [0.0] * len(completion_ids)
        lengths = [sum(token != self.eos_token_id for token in ids) for ids in completion_ids]
        return [max(0.0, (self.min_tokens - length) / self.min_tokens) for length in lengths]
