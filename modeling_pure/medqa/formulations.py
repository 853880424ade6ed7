"""Ways to ask a question: which of them a run asks, and which one is its headline.

letter     options shown, their letters scored: lm-evaluation-harness's
text       options shown, their texts scored as the answer format `text` writes them
cloze      options not shown, their texts scored
generate   the model writes, in one of the answer formats, with or without a chat template
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transformers import PreTrainedConfig

from .formats import headline_format, taught_formats, warn_untaught

if TYPE_CHECKING:
    from .arguments import EvalArguments


@dataclass(frozen=True)
class Formulation:
    """One way to ask.

    Args:
        scorer: `letter`, `text`, `cloze` or `generate`.
        answer_format: of the prompt and the answer; None for `cloze`, which no model is taught.
        chat: whether the prompt is a turn in the tokenizer's chat template; for `generate`.
        open_book: whether passages stand before the question.
    """

    scorer: str
    answer_format: str | None
    chat: bool = False
    open_book: bool = False

    @property
    def name(self) -> str:
        """What reports call it, e.g. `text, open book` or `generate reasoned, chat`."""
        scorer = f"generate {self.answer_format}" if self.scorer == "generate" else self.scorer
        return ", ".join([scorer, *["chat"] * self.chat, *["open book"] * self.open_book])

    @property
    def sees_order(self) -> bool:
        """Whether options are shown and scored, so that other orders of them are worth asking."""
        return self.scorer in ("letter", "text")

    @property
    def closed(self) -> "Formulation":
        """The same without passages."""
        return replace(self, open_book=False)


BY_LETTER, BY_TEXT, CLOZE = Formulation("letter", "letter"), Formulation("text", "text"), Formulation("cloze", None)


@dataclass(frozen=True)
class Plan:
    """What a run asks.

    Args:
        headline: the formulation that the report's accuracy is of; `others` stand beside it.
        taught: formats that the model's configuration names.
        reason: why the headline is this one.
        warning: set if a format was not taught, other than the letters that stand beside anything.
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


def make_plan(args: "EvalArguments", config: PreTrainedConfig) -> Plan:
    """The formulations of a run: the headline, its closed-book twin, what `beside` names, and always the letters."""
    taught = taught_formats(config)
    first = headline_format(taught)
    by_scorer = {formulation.scorer: formulation for formulation in (BY_LETTER, BY_TEXT, CLOZE)}
    written = "reasoned" if "reasoned" in taught else first
    by_scorer["generate"] = Formulation("generate", args.answer_format or written, args.chat)
    scorer = args.scorer
    if scorer == "auto":
        scorer = "generate" if first == "reasoned" else first
    scorer = scorer if args.data_set.has_letters else "letter"
    headline = replace(by_scorer[scorer], open_book=args.passages is not None)
    others = dict.fromkeys([headline.closed, *(by_scorer[name] for name in args.beside), BY_LETTER])
    beside = tuple(other for other in others if other != headline)
    formats = dict.fromkeys(one.answer_format for one in (headline, *beside) if one.answer_format)
    # lm-evaluation-harness's letters stand beside anything, whatever was taught.
    asked = [name for name in formats if name == headline.answer_format or name != "letter"]
    warnings = [warn_untaught(config, name) for name in asked if args.data_set.has_letters]
    warning = "\n".join(text for text in warnings if text) or None
    return Plan(headline, beside, tuple(taught), headline_reason(args, taught), warning)


def headline_reason(args: "EvalArguments", taught: list[str]) -> str:
    """Why a formulation is the headline."""
    if not args.data_set.has_letters:
        return "the only one for a data set without lettered options"
    formats = f"the model was taught {' and '.join(taught)}" if taught else "the model names no format it was taught"
    return formats if args.scorer == "auto" else f"chosen with --scorer; {formats}"
