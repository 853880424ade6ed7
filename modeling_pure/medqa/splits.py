"""Which questions may be used where. Decided here and nowhere else, by a hash of the question's text.

A train file falls into three parts:

    dev       10 %, never in pretraining, never in GRPO: what models are selected on
    holdout   `grpo_holdout` of the rest (0 by default, the seed's reading): in GRPO, never in pretraining
    train     what remains: in pretraining and in GRPO

A hash does not depend on the order of the rows or on how many of them a copy of MedQA holds, so a question stays on
its side for good. The test split is opened by eval_medqa.py alone.
"""

from ..errors import InputError
from .questions import Question

DEV_SHARE = 0.1


def split_of(question: Question, grpo_holdout: float = 0.0) -> str:
    """`dev`, `holdout` or `train` for a question of a train file; duplicates of a question share a side."""
    position = int(question.digest[:13], 16) / 16**13
    if position < DEV_SHARE:
        return "dev"
    return "holdout" if position < DEV_SHARE + (1 - DEV_SHARE) * grpo_holdout else "train"


def select_split(questions: list[Question], *splits: str, grpo_holdout: float = 0.0) -> list[Question]:
    """The questions of a train file that fall into one of `splits`, in their order.

    Raises:
        InputError: `grpo_holdout` is no share.
    """
    if not 0 <= grpo_holdout < 1:
        raise InputError(f"grpo_holdout: expected a share from 0 up to 1, found {grpo_holdout}")
    return [question for question in questions if split_of(question, grpo_holdout) in splits]
