"""Formulations: ways to ask a question, and orders of its options.

letter     options shown, their letters scored: lm-evaluation-harness's
text       options shown, their texts scored as the answer format `text` writes them
cloze      options not shown, their texts scored
generate   answers generated in one of the answer formats, with or without a chat template
"""

import itertools
from dataclasses import dataclass, replace

from .questions import LETTERS

Order = tuple[int, ...]
IDENTITY = tuple(range(len(LETTERS)))
ORDERS: dict[int, list[Order]] = {
    1: [IDENTITY],
    4: [IDENTITY[r:] + IDENTITY[:r] for r in IDENTITY],
    24: list(itertools.permutations(IDENTITY)),
}
"""Orders of the options by their number, the file's own first. Each option appears equally often in each place."""


@dataclass(frozen=True)
class Formulation:
    """One way to ask.

    Args:
        scorer: `letter`, `text`, `cloze` or `generate`.
        answer_format: of the prompt and the answer; None for `cloze`, which no model is taught.
        chat: whether the prompt is a turn in the tokenizer's chat template; for `generate`.
        open_book: whether passages precede the question.
    """

    scorer: str
    answer_format: str | None
    chat: bool = False
    open_book: bool = False

    @property
    def name(self) -> str:
        """Its name in reports, e.g. `text, open book` or `generate reasoned, chat`."""
        scorer = f"generate {self.answer_format}" if self.scorer == "generate" else self.scorer
        return ", ".join([scorer, *["chat"] * self.chat, *["open book"] * self.open_book])

    @property
    def depends_on_order(self) -> bool:
        """Whether options are shown and scored, so that reordering them can change the prediction."""
        return self.scorer in ("letter", "text")

    @property
    def closed(self) -> "Formulation":
        """The same without passages."""
        return replace(self, open_book=False)


BY_LETTER, BY_TEXT, CLOZE = Formulation("letter", "letter"), Formulation("text", "text"), Formulation("cloze", None)


@dataclass(frozen=True)
class Plan:
    """The formulations of a run.

    Args:
        headline: the formulation of the report's accuracy; `others` are reported with it.
        taught: formats in the model's configuration.
        reason: why the headline is this one.
        warning: set if a format was not taught; letters that are only reported with the headline do not count.
    """

    headline: Formulation
    others: tuple[Formulation, ...]
    taught: tuple[str, ...]
    reason: str
    warning: str | None

    @property
    def formulations(self) -> tuple[Formulation, ...]:
        """All of them, the headline first."""
        return self.headline, *self.others
