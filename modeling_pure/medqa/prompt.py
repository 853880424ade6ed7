"""The one prompt and the one answer format, in pretraining text, GRPO and evaluation alike.

The prompt is that of lm-evaluation-harness's task `medqa_4options`, byte for byte (nothing is stripped); the answer
that follows it is ` C. Nitrofurantoin` and the end-of-text token. The letter decides.
"""

import re

from .questions import LETTERS, Question

ANSWER = re.compile(r" ([ABCD])(?:\.\s|\.?\Z)")


def format_prompt(question: Question) -> str:
    """The text up to and including `Answer:`."""
    return f"Question: {question.question}\n{format_options(question)}Answer:"


def format_options(question: Question) -> str:
    """A line `A. Aspirin` for each option."""
    letters = LETTERS[: len(question.options)]
    return "".join(f"{letter}. {option}\n" for letter, option in zip(letters, question.options, strict=True))


def format_stem(question: Question) -> str:
    """The prompt without the options, for scoring their texts: what a question is about, and the question."""
    about = f"Abstract: {question.context}\n" if question.context else ""
    return f"{about}Question: {question.question}\nAnswer:"


def format_answer(question: Question) -> str:
    """The right answer as it follows the prompt, without the end-of-text token: ` C. Nitrofurantoin`."""
    return f" {question.letter}. {question.options[question.answer]}"


def parse_answer(completion: str) -> int | None:
    """The index of the letter a completion answers with; None where it does not start with ` C` or ` C. ...`.

    >>> parse_answer(" C. Nitrofurantoin"), parse_answer(" A"), parse_answer(" A woman"), parse_answer("It is C")
    (2, 0, None, None)
    """
    match = ANSWER.match(completion)
    return LETTERS.index(match.group(1)) if match else None
