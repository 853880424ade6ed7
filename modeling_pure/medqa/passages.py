"""Open books: passages from a folder of texts, found with BM25 for each question, and cut to the context."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TypedDict

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.decontamination import QuestionFinder
from ..errors import InputError, first_line
from ..records import LOCAL_BUILDERS, files_below, local_files, open_records
from ..tokenizer import prompt_ids
from .bm25 import Bm25, content_words
from .formats import folded
from .questions import Question

PASSAGE_WORDS = 150
BOOK_SUFFIXES = (".txt", ".md")
QUERIES = 256  # whose words are looked up at a time


class RetrievalMetrics(TypedDict):
    """How much of the options is in the passages.

    Attributes:
        right_found: share of the questions whose right option's text is in one of their passages.
        wrong_found: mean share of the wrong options whose texts are.
        passages: mean number of passages.
    """

    right_found: float
    wrong_found: float
    passages: float


class Library:
    """The passages of a folder's books, in an index.

    Attributes:
        left_out: passages that were left out, because they cover a guarded question or stand next to such a one.
        unguarded: questions that are too short to be looked for in the passages.
        unread: names of other files in the folder and below it.
    """

    def __init__(
        self, key: str, passages: list[str], left_out: int = 0, unguarded: int = 0, unread: Sequence[str] = ()
    ) -> None:
        self.passages, self.left_out, self.unguarded, self.unread = passages, left_out, unguarded, unread
        self.index = Bm25(key, passages)

    @classmethod
    def read(cls, key: str, folder: str, guarded: list[Question]) -> "Library":
        """Read the books of a folder: `.txt`, `.md`, and the column `text` of jsonl and parquet files.

        Args:
            key: the option that `folder` came from; error messages name it.
            guarded: questions that no passage may give away: those covered by the rule of decontamination.

        Raises:
            InputError: no such folder, nothing to read in it, or all of it is left out.
        """
        guard = QuestionFinder(guarded) if guarded else None
        texts = tqdm(texts_of(key, folder), desc=f"reading {folder}", unit="text", disable=None, leave=False)
        kept: list[str] = []
        left_out = 0
        for text in texts:
            passages = split_passages(text)
            covering = covering_passages(text, guard) if guard else set()
            kept += [passage for number, passage in enumerate(passages) if number not in covering]
            left_out += len(covering)
        if not kept:
            every = f"all {left_out:,} passages of '{folder}' cover questions; take other books"
            raise InputError(f"{key}: {every}" if left_out else nothing_to_read(key, folder))
        return cls(key, kept, left_out, guard.unchecked if guard else 0, unread_files(folder))

    def describe(self) -> str:
        """Describe the library for the start-up block: passages kept and left out, questions too short to check."""
        return (
            f"{len(self):,}; {self.left_out:,} that cover a question left out"
            + f", {self.unguarded:,} questions too short to look for" * bool(self.unguarded)
            + f"; {len(self.unread):,} files not read, such as {', '.join(self.unread[:3])}" * bool(self.unread)
        )

    def __len__(self) -> int:
        return len(self.passages)

    def retrieve(self, questions: list[Question], number: int) -> list[Question]:
        """The questions with their `number` best passages, best first; the order of the options does not matter.

        A passage without any word of the question and its options is not among them.
        """
        found = []
        with tqdm(total=len(questions), desc="BM25", unit="question", disable=None, leave=False) as bar:
            for start in range(0, len(questions), QUERIES):
                asked = questions[start : start + QUERIES]
                for question, words in zip(asked, content_words(list(map(query_of, asked))), strict=True):
                    best = self.index.best(words, number)
                    found.append(replace(question, passages=tuple(self.passages[i] for i in best)))
                bar.update(len(asked))
        return found


def query_of(question: Question) -> str:
    """What passages are looked for with: all of the question, whatever the order of its options."""
    return " ".join([question.context, question.question, *sorted(question.options)])


def textbook_passages(key: str, folder: str) -> list[str]:
    """All passages of a folder's books.

    Raises:
        InputError: no such folder, or nothing to read in it.
    """
    passages = [passage for text in texts_of(key, folder) for passage in split_passages(text)]
    if not passages:
        raise InputError(nothing_to_read(key, folder))
    return passages


def nothing_to_read(key: str, folder: str) -> str:
    """The message for a folder without books."""
    return f"{key}: '{folder}' holds no text; expected {', '.join((*BOOK_SUFFIXES, *LOCAL_BUILDERS))}"


def texts_of(key: str, folder: str) -> Iterator[str]:
    """The texts in a folder's files; `InputError` for one that cannot be read."""
    if not Path(folder).is_dir():
        raise InputError(f"{key}: '{folder}' is no folder")
    for file in book_files(folder):
        try:
            if file.lower().endswith(BOOK_SUFFIXES):
                yield Path(file).read_text(encoding="utf-8-sig")
                continue
            for row in open_records(key, file):
                if "text" not in row or not isinstance(row["text"], str | None):
                    raise InputError(f"{key}: '{file}' has no column 'text'")
                yield row["text"] or ""
        except (OSError, ValueError, TypeError) as error:  # pyarrow's errors are ValueErrors
            raise InputError(f"{key}: cannot read '{file}': {first_line(error)}") from error


def book_files(folder: str) -> list[str]:
    """The files of a folder that are read."""
    return [*local_files(folder, BOOK_SUFFIXES), *local_files(folder, LOCAL_BUILDERS)]


def unread_files(folder: str) -> list[str]:
    """The names of the others, in the folder and below it."""
    read = set(book_files(folder))
    return [file.name for file in files_below(folder) if str(file) not in read]


def split_passages(text: str) -> list[str]:
    """A text in pieces of 150 words, each on one line; the last is shorter."""
    words = text.split()
    return [" ".join(words[start : start + PASSAGE_WORDS]) for start in range(0, len(words), PASSAGE_WORDS)]


def covering_passages(text: str, guard: QuestionFinder) -> set[int]:
    """The numbers of a text's passages that cover a question, or hold a part of a stretch of 150 words that does.

    Stretches overlap by half: a question that two passages share is found, and what follows it may be its answer.
    """
    words = text.split()
    covering: set[int] = set()
    for start in range(0, len(words), PASSAGE_WORDS // 2):
        stretch = words[start : start + PASSAGE_WORDS]
        if guard.covers(" ".join(stretch)):
            covering |= {start // PASSAGE_WORDS, (start + len(stretch) - 1) // PASSAGE_WORDS}
    return covering


def fit_passages(
    question: Question,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    prompt: Callable[[Question], str],
    templated: bool = False,
) -> Question:
    """The question with as much of its passages as `prompt(question)` has room for in `max_tokens` tokens.

    Whole passages are kept from the best on, the first that does not fit is cut at a word, the others are dropped.
    `templated` is that of `prompt_ids`.
    """

    def fits(one: Question) -> bool:
        return len(prompt_ids(tokenizer, [prompt(one)], templated)[0]) <= max_tokens

    return cut_passages(question, fits)


def cut_passages(question: Question, fits: Callable[[Question], bool]) -> Question:
    """The question with as much of its passages as `fits`: see `fit_passages`."""
    if not question.passages or fits(question):
        return question
    kept: tuple[str, ...] = ()
    for passage in question.passages:
        if not fits(replace(question, passages=(*kept, passage))):
            break
        kept = (*kept, passage)
    ends = [0, *(word.end() for word in re.finditer(r"\S+", passage))]
    low, high = 0, len(ends) - 1  # the first `low` words fit, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if fits(replace(question, passages=(*kept, passage[: ends[middle]]))):
            low = middle
        else:
            high = middle
    return replace(question, passages=(*kept, passage[: ends[low]]) if low else kept)


def retrieval_metrics(questions: list[Question]) -> RetrievalMetrics:
    """How often the texts of the options are in the passages, on word borders and whatever their case.

    Args:
        questions: at least one.
    """
    right, wrong = [], []
    for question in questions:
        passages = list(map(folded, question.passages))
        found = [any(mentions(passage, folded(option)) for passage in passages) for option in question.options]
        right.append(found.pop(question.answer))
        wrong.append(fmean(found))
    number = fmean(len(question.passages) for question in questions)
    return {"right_found": fmean(right), "wrong_found": fmean(wrong), "passages": number}


def mentions(text: str, words: str) -> bool:
    """Whether a text holds these words, and not as parts of others."""
    return words in text and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None
