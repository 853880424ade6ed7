r"""Prompts and answers of pretraining texts, SFT, GRPO and evaluation, byte for byte.

    letter      Answer: C. Nitrofurantoin                              the letter decides
    text        Answer: Nitrofurantoin (C)                             the text decides
    reasoned    Reasoning: Pyuria ... .\nAnswer: Nitrofurantoin (C)    the last line `Answer: ...` decides

The prompt ends with the first colon and is that of lm-evaluation-harness's task `medqa_4options`, without stripping.
The completion is what follows, up to and including the first end token (`end_ids`).
"""

import random
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from .questions import Question, option_text

ANSWER_FORMATS = ("letter", "text", "reasoned")
LETTER_FIRST = re.compile(r" ([A-Z])(?:\.\s|\.?\Z)")
LETTER_LAST = re.compile(r"(.*) \([ABCD]\)", re.IGNORECASE)
# How explanations refer to options, which is valid in the file's order only: "Ans. is 'c'", "options B and C", "(d)",
# "C. Something", "the second choice". Broad on purpose: a false match only leaves a question's options unshuffled.
NAMES_A_LETTER = re.compile(
    r"""
    \b(ans|answer|option|choice)s?\b [^\n]{0,20}? \b[a-d]\b
    | ['"\u2018\u201c(\[] [a-d] ['"\u2019\u201d)\]]
    | (^|\s) [a-d] [).:] (\s|$)
    | (?-i:\b[A-D]) (\s*,|\s+(and|or|&)) \s+ (?-i:[A-D]\b)
    | (?-i:\b[A-D]) \s+ (is|are|was|were) \b
    | \b(first|second|third|fourth|last|former|latter) \s+ (answer|option|choice)
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)


@dataclass(frozen=True)
class Answer:
    """The answer in a completion.

    Attributes:
        option: index of the option; None if the completion cannot be parsed.
        contradicts: whether letter and text name different options.
        reasoning: in the format `reasoned` the text before the answer, or the whole text without an answer.
    """

    option: int | None
    contradicts: bool = False
    reasoning: str = ""


def medqa_prompt(question: Question) -> str:
    """The prompt of lm-evaluation-harness's `medqa_4options`."""
    return f"Question: {question.question}\n{format_options(question)}Answer:"


def format_prompt(
    question: Question, answer_format: str = "letter", task_prompt: Callable[[Question], str] = medqa_prompt
) -> str:
    """A task's prompt up to and including `Answer:` or `Reasoning:`, after the question's passages."""
    prompt = task_prompt(question)
    if answer_format == "reasoned":
        prompt = prompt.removesuffix("Answer:") + "Reasoning:"
    return format_passages(question) + prompt


def format_options(question: Question) -> str:
    """A line `A. Aspirin` for each option."""
    letters = ascii_uppercase[: len(question.options)]
    return "".join(f"{letter}. {option}\n" for letter, option in zip(letters, question.options, strict=True))


def format_stem(question: Question) -> str:
    """The prompt without the options, for scoring their texts."""
    about = f"Abstract: {question.context}\n" if question.context else ""
    return f"{format_passages(question)}{about}Question: {question.question}\nAnswer:"


def format_passages(question: Question) -> str:
    """A line `Passage 1: ...` for each passage of an open-book question."""
    return "".join(f"Passage {number}: {text}\n" for number, text in enumerate(question.passages, 1))


def format_answer(question: Question, answer_format: str = "letter") -> str:
    """The right answer after the prompt, without an end token; ValueError for `reasoned` without an explanation."""
    option = question.options[question.answer]
    if answer_format == "letter":
        return f" {question.letter}. {option}"
    by_text = f" {option_text(option)} ({question.letter})"
    if answer_format == "text":
        return by_text
    if not question.explanation:
        raise ValueError("the question has no explanation")
    return f" {question.explanation}\nAnswer:{by_text}"


def text_continuation(option: str) -> str:
    """The answer of the format `text` up to its letter: ` Nitrofurantoin (`."""
    return f" {option_text(option)} ("


def parse_answer(
    completion: str, options: Sequence[str], answer_format: str = "letter", finished: bool = True
) -> Answer:
    r"""Parse a completion strictly, so that a letter mentioned in passing does not count as an answer.

    A letter must come first (` C`, ` C. ...`). An option's text may differ in case, Unicode composition and
    whitespace, and its letter is optional; a line with more text, or with the text of two equal options, is not an
    answer.

    Args:
        finished: whether the completion ended with an end token; otherwise `reasoned` is not parsed.

    >>> options = ("Aspirin", "Heparin", "Nitrofurantoin", "Warfarin")
    >>> parse_answer(" C. Nitrofurantoin", options).option
    2
    >>> parse_answer(" nitrofurantoin (A)", options, "text")
    Answer(option=2, contradicts=True, reasoning='')
    >>> parse_answer(" Not A.\nAnswer: Nitrofurantoin (C)", options, "reasoned")
    Answer(option=2, contradicts=False, reasoning=' Not A.')
    """
    if answer_format == "letter":
        return by_letter(completion, options)
    if answer_format == "text":
        return by_text(completion.split("\n")[0], options)
    first, *others = completion.split("\n")
    lines = [first.lstrip(), *others]  # a chat model's turn may begin with its answer
    last = max((i for i, line in enumerate(lines) if line.startswith("Answer:")), default=None)
    if last is None or not finished:
        return Answer(None, reasoning=completion)
    line, reasoning = lines[last].removeprefix("Answer:"), "\n".join([first, *others][:last])
    found = by_text(line, options)
    found = by_letter(line, options) if found.option is None else found
    return Answer(found.option, found.contradicts, reasoning)


def by_letter(completion: str, options: Sequence[str]) -> Answer:
    """Parse the letter at the start of a completion."""
    match = LETTER_FIRST.match(completion)
    if not match or (letter := ascii_uppercase.index(match[1])) >= len(options):
        return Answer(None)
    line = completion[match.end() :].split("\n")[0]
    exact = only_option(line, options, option_text)
    text = only_option(line, options, folded) if exact is None else exact
    return Answer(letter, contradicts=text not in (None, letter))


def by_text(line: str, options: Sequence[str]) -> Answer:
    """Parse the option's text with an optional letter after it: an exact match, or else one that ignores case."""
    for plain in (option_text, folded):
        answers = [plain(f"{option} ({letter})") for option, letter in zip(options, ascii_uppercase, strict=False)]
        if plain(line) in answers:
            return Answer(answers.index(plain(line)))
        if (option := only_option(line, options, plain)) is not None:
            return Answer(option)
        match = LETTER_LAST.fullmatch(option_text(line))
        if match and (option := only_option(match[1], options, plain)) is not None:
            return Answer(option, contradicts=True)
    return Answer(None)


def only_option(text: str, options: Sequence[str], plain: Callable[[str], str]) -> int | None:
    """The only option equal to a text after `plain`; None for an empty text, no such option, or several."""
    found = [i for i, option in enumerate(options) if plain(text) and plain(option) == plain(text)]
    return found[0] if len(found) == 1 else None


def folded(text: str) -> str:
    """A text on one line, with case and Unicode composition normalised."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", option_text(text)).casefold())


def checked_formats(key: str, shares: Any) -> dict[str, float]:
    """Check a recipe's answer formats and their shares, which must add up to 1; a single name has a share of 1."""
    shares = {shares: 1.0} if isinstance(shares, str) else shares
    are_numbers = isinstance(shares, dict) and all(
        isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1 for share in shares.values()
    )
    if not are_numbers or not {*shares} <= {*ANSWER_FORMATS} or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(
            f"{key}: expected shares of {', '.join(ANSWER_FORMATS)} that add up to 1, as {{text: 0.5, letter: 0.5}}; "
            f"found {shares!r}"
        )
    return {name: float(shares[name]) for name in ANSWER_FORMATS if name in shares}  # draws depend on the order


def describe_formats(shares: dict[str, float]) -> str:
    """Formats and their shares as text: `letter 50 %, text 50 %`."""
    return ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in shares.items())


def draw_format(shares: dict[str, float], question: Question, rng: random.Random) -> str:
    """Draw a format, `reasoned` only for a question with an explanation; ValueError if no other is left."""
    usable = {name: share for name, share in shares.items() if name != "reasoned" or question.explanation}
    if not usable:
        raise ValueError("the question has no explanation")
    return rng.choices([*usable], [*usable.values()])[0]


def shuffled_for(question: Question, answer_format: str, rng: random.Random) -> Question:
    """The question with shuffled options, unless the format shows an explanation that refers to them by letter.

    Draws from `rng` either way, so that one question's explanation does not change another's order.
    """
    shuffled = question.shuffled(rng)
    keeps_order = answer_format == "reasoned" and NAMES_A_LETTER.search(question.explanation)
    return question if keeps_order else shuffled


def taught_formats(config: PreTrainedConfig) -> list[str]:
    """The formats that a checkpoint was taught, from its configuration; empty for third-party models."""
    return list(getattr(config, "answer_formats", None) or [])


def headline_format(formats: Collection[str]) -> str:
    """The format of the headline accuracy for a model that was taught several; letter if none."""
    return next((name for name in ("text", "letter", "reasoned") if name in formats), "letter")


def teach_formats(config: PreTrainedConfig, formats: Iterable[str]) -> None:
    """Add formats to a model's configuration."""
    taught = {*taught_formats(config), *formats}
    vars(config)["answer_formats"] = [name for name in ANSWER_FORMATS if name in taught]


def warn_untaught(config: PreTrainedConfig, answer_format: str) -> str | None:
    """A warning if the checkpoint's configuration names formats without this one."""
    taught = taught_formats(config)
    if not taught or answer_format in taught:
        return None
    return f"WARNING: the model was taught to answer by {', '.join(taught)}; answers by {answer_format} mean little"


def chat_message(prompt: str) -> list[dict[str, str]]:
    """A prompt as the one turn of a conversation."""
    return [{"role": "user", "content": prompt}]


def chat_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A prompt in the tokenizer's chat template, up to the model's turn; it already holds the special tokens."""
    if not tokenizer.chat_template:
        raise InputError("chat: the tokenizer has no chat template; set chat to false")
    text = tokenizer.apply_chat_template(chat_message(prompt), tokenize=False, add_generation_prompt=True)
    return str(text)


def from_chat(completion: str) -> str:
    """A chat model's turn in the form of a completion, which starts with a space."""
    return f" {completion.lstrip()}"


def end_ids(
    config: PreTrainedConfig | None, generation_config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Sorted ids of the tokens that end a completion: the tokenizer's, and those in both configurations of the model.

    Instruct models also end turns, which only one of the configurations may name.
    """
    ends = {tokenizer.eos_token_id}
    for named in (getattr(config, "eos_token_id", None), getattr(generation_config, "eos_token_id", None)):
        ends |= {*named} if isinstance(named, list) else {named}
    return sorted(ends - {None})


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`end_ids` of a model."""
    return end_ids(model.config.get_text_config(), getattr(model, "generation_config", None), tokenizer)


def set_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Make `generate` of a model, also after saving and loading, stop at its `end_tokens`, and return them."""
    ends = end_tokens(model, tokenizer)
    generation: Any = model.generation_config  # never None for a model that can generate
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    return ends
