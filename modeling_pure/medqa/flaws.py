"""Flaws of questions that make an accuracy mean less: none is mended, all are counted and shown."""

import re
import unicodedata
from html.entities import html5

from .formats import option_text
from .questions import Question
from .schema import Flaws

ENTITY = re.compile(r"&(#\d+|#[xX][0-9a-fA-F]+|\w+);")


def find_flaws(questions: list[Question]) -> Flaws:
    """The rows of the questions that have each flaw."""
    flaws: Flaws = {"same_options": [], "right_option_twice": [], "empty_options": [], "html_entities": []}
    for row, question in enumerate(questions):
        texts = [unicodedata.normalize("NFC", option_text(option)) for option in question.options]
        if len({*texts}) < len(texts):
            flaws["same_options"].append(row)
        if texts.count(texts[question.answer]) > 1:
            flaws["right_option_twice"].append(row)
        if "" in texts:
            flaws["empty_options"].append(row)
        if any(map(has_entity, (question.question, question.context, *question.options))):
            flaws["html_entities"].append(row)
    return flaws


def has_entity(text: str) -> bool:
    """Whether a text holds an HTML entity, such as `&lt;`, where it should hold the character."""
    return any(name.startswith("#") or f"{name};" in html5 for name in ENTITY.findall(text))


def describe_flaws(flaws: Flaws) -> list[str]:
    """A sentence for each flaw that there is."""
    twice = len(flaws["right_option_twice"])
    titles = {
        "two options with the same text": flaws["same_options"],
        "an empty option": flaws["empty_options"],
        "HTML entities": flaws["html_entities"],
    }
    sentences = [f"Questions with {title}: {rows_in_words(rows)}." for title, rows in titles.items() if rows]
    if flaws["same_options"]:
        sentences[0] += f" In {twice} of them the right option is one of the two, so that another answer is right too."
    return sentences


def rows_in_words(rows: list[int]) -> str:
    """How many, and the first of them: `7 (rows 0, 3, 4, 8, 9 ...)`."""
    named = ", ".join(map(str, rows[:5]))
    return f"{len(rows)} (row{'s' * (len(rows) > 1)} {named}{' ...' if len(rows) > 5 else ''})"
