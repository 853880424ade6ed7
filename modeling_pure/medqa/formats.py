r"""Prompts and answers, byte for byte, in one place: pretraining text, SFT, GRPO and evaluation all use these.

    letter      Answer: C. Nitrofurantoin                              the letter decides
    text        Answer: Nitrofurantoin (C)                             the text decides
    reasoned    Reasoning: Pyuria ... .\nAnswer: Nitrofurantoin (C)    the last line `Answer: ...` decides

Everything up to and including the first colon is the prompt, that of lm-evaluation-harness's task `medqa_4options`
(nothing is stripped); a completion is what follows, up to and including the first token that ends one (`end_ids`).
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
# "Ans. is 'c'", "options B and C", "(d)", "C. Something", "the second choice": how an explanation refers to an option,
# which holds in the file's order only. Broad on purpose: a false match costs a question its shuffle and nothing else.
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
    """The answer that a completion gives.

    Attributes:
        option: index of the option; None if the completion cannot be parsed.
        contradicts: whether letter and text name different options.
        reasoning: the text before the answer; everything if there is no answer, and empty in formats without reasons.
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
    """A task's prompt up to and including `Answer:` or `Reasoning:`, with the question's passages before it."""
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
    """An option as the format `text` begins with it, up to where the letter follows: ` Nitrofurantoin (`."""
    return f" {option_text(option)} ("


def parse_answer(
    completion: str, options: Sequence[str], answer_format: str = "letter", finished: bool = True
) -> Answer:
    r"""Parse a completion strictly, so that no letter mentioned in passing counts as an answer.

    A letter needs its place (` C`, ` C. ...`). An option's text may differ in case, Unicode composition and blanks,
    and may lack its letter; a line that holds more, or the text of two equal options, is no answer.

    Args:
        finished: whether the completion ended by itself; an unfinished `reasoned` one is not parsed.

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
    lines = [first.lstrip(), *others]  # a chat model's turn, too, may begin with its answer
    last = max((i for i, line in enumerate(lines) if line.startswith("Answer:")), default=None)
    if last is None or not finished:
        return Answer(None, reasoning=completion)
    line, reasoning = lines[last].removeprefix("Answer:"), "\n".join([first, *others][:last])
    found = by_text(line, options)
    found = by_letter(line, options) if found.option is None else found
    return Answer(found.option, found.contradicts, reasoning)


def by_letter(completion: str, options: Sequence[str]) -> Answer:
    """The letter at the start decides."""
    match = LETTER_FIRST.match(completion)
    if not match or (letter := ascii_uppercase.index(match[1])) >= len(options):
        return Answer(None)
    line = completion[match.end() :].split("\n")[0]
    exact = only_option(line, options, option_text)
    text = only_option(line, options, folded) if exact is None else exact
    return Answer(letter, contradicts=text not in (None, letter))


def by_text(line: str, options: Sequence[str]) -> Answer:
    """The option whose text the line holds, with or without a letter behind it; exactly, or else in any case."""
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
    """The one option that is this text, both made `plain`; None if there is none, or several, or no text."""
    found = [i for i, option in enumerate(options) if plain(text) and plain(option) == plain(text)]
    return found[0] if len(found) == 1 else None


def folded(text: str) -> str:
    """A text on one line, without the differences of case and Unicode composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", option_text(text)).casefold())


def checked_formats(key: str, shares: Any) -> dict[str, float]:
    """The answer formats of a recipe with their shares, which must add up to 1; a bare name has the whole share."""
    shares = {shares: 1.0} if isinstance(shares, str) else shares
    are_numbers = isinstance(shares, dict) and all(
        isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1 for share in shares.values()
    )
    if not are_numbers or not {*shares} <= {*ANSWER_FORMATS} or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(
            f"{key}: expected shares of {', '.join(ANSWER_FORMATS)} that add up to 1, as {{text: 0.5, letter: 0.5}}; "
            f"found {shares!r}"
        )
    return {name: float(shares[name]) for name in ANSWER_FORMATS if name in shares}  # in one order: draws depend on it


def describe_formats(shares: dict[str, float]) -> str:
    """Formats and their shares in words: `letter 50 %, text 50 %`."""
    return ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in shares.items())


def draw_format(shares: dict[str, float], question: Question, rng: random.Random) -> str:
    """Draw a format; `reasoned` only for a question with an explanation, ValueError if there is no other."""
    usable = {name: share for name, share in shares.items() if name != "reasoned" or question.explanation}
    if not usable:
        raise ValueError("the question has no explanation")
    return rng.choices([*usable], [*usable.values()])[0]


def shuffled_for(question: Question, answer_format: str, rng: random.Random) -> Question:
    """The question with shuffled options, unless the explanation that will be shown calls them by their letters.

    Draws from `rng` either way, so that one question's explanation does not change another's order.
    """
    shuffled = question.shuffled(rng)
    keeps_order = answer_format == "reasoned" and NAMES_A_LETTER.search(question.explanation)
    return question if keeps_order else shuffled


def taught_formats(config: PreTrainedConfig) -> list[str]:
    """The formats that a checkpoint was taught, by its configuration; empty for other people's models."""
    return list(getattr(config, "answer_formats", None) or [])


def headline_format(formats: Collection[str]) -> str:
    """Which of several formats a model is judged by; letters if there is none."""
    return next((name for name in ("text", "letter", "reasoned") if name in formats), "letter")


def teach_formats(config: PreTrainedConfig, formats: Iterable[str]) -> None:
    """Add formats to those that a model's configuration names."""
    taught = {*taught_formats(config), *formats}
    vars(config)["answer_formats"] = [name for name in ANSWER_FORMATS if name in taught]


def warn_untaught(config: PreTrainedConfig, answer_format: str) -> str | None:
    """A warning if the checkpoint names the formats it was taught, and this one is not among them."""
    taught = taught_formats(config)
    if not taught or answer_format in taught:
        return None
    return f"WARNING: the model was taught to answer by {', '.join(taught)}; answers by {answer_format} mean little"


def chat_message(prompt: str) -> list[dict[str, str]]:
    """A prompt as the one turn of a conversation."""
    return [{"role": "user", "content": prompt}]


def chat_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A prompt in the tokenizer's chat template, up to the model's turn; encode it without special tokens."""
    if not tokenizer.chat_template:
        raise InputError("chat: the tokenizer has no chat template; set chat to false")
    text = tokenizer.apply_chat_template(chat_message(prompt), tokenize=False, add_generation_prompt=True)
    return str(text)


def from_chat(completion: str) -> str:
    """A chat model's turn as the completion of a prompt, which begins with a blank."""
    return f" {completion.lstrip()}"


def end_ids(
    config: PreTrainedConfig | None, generation_config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Sorted ids of the tokens that end a completion: the tokenizer's, and all that the model's two files name.

    An instruct model also ends turns, and only one of its files may know that.
    """
    ends = {tokenizer.eos_token_id}
    for named in (getattr(config, "eos_token_id", None), getattr(generation_config, "eos_token_id", None)):
        ends |= {*named} if isinstance(named, list) else {named}
    return sorted(ends - {None})


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`end_ids` of a model."""
    return end_ids(model.config.get_text_config(), getattr(model, "generation_config", None), tokenizer)


def set_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`end_tokens`, at which the model's own `generate` then also stops, after saving and loading too."""
    ends = end_tokens(model, tokenizer)
    generation: Any = model.generation_config  # never None: the model can generate
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    return ends
