"""The one prompt and the one answer format, in pretraining text, GRPO and evaluation alike.

The prompt is that of lm-evaluation-harness's task `medqa_4options`, byte for byte (nothing is stripped); the answer
that follows it is ` C. Nitrofurantoin` and the end-of-text token. The letter decides.
"""

import re

from .questions import LETTERS, Question

ANSWER = re.compile(r" ([ABCD])(?:\.\s|\.?\Z)")


def format_prompt(question: Question) -> str:
    """The text up to and including `Answer:`."""
    letters = LETTERS[: len(question.options)]
    options = "".join(f"{letter}. {option}\n" for letter, option in zip(letters, question.options, strict=True))
    return f"Question: {question.question}\n{options}Answer:"


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
