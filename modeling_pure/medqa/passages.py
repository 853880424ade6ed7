"""Open-book questions: passages from a folder of texts, retrieved with BM25, and truncated to fit the context."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import bm25s
import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..errors import InputError, first_line
from ..files import files_below, local_files
from ..records import LOCAL_BUILDERS, open_records
from ..tokenizer import prompt_ids
from .decontamination import QuestionFinder
from .formats import folded
from .questions import Question

PASSAGE_WORDS = 150
BOOK_SUFFIXES = (".txt", ".md")


def content_words(texts: list[str]) -> list[list[str]]:
    """The words of each text as BM25 counts them: lower case, without English stop words, not stemmed."""
    words: list[list[str]] = bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
    return words


class Bm25:
    """An index of documents with Lucene's BM25 scores; `InputError` naming `key` if they hold only stop words."""

    def __init__(self, key: str, documents: list[str]) -> None:
        words = bm25s.tokenize(documents, stopwords="en", show_progress=False)
        if not any(map(len, words.ids)):
            raise InputError(f"{key}: the texts hold no words except stop words")
        self.number = len(documents)
        self.index = bm25s.BM25(method="lucene")
        self.index.index(words, show_progress=False)

    def scores(self, words: list[str]) -> np.ndarray:
        """The BM25 scores of all documents for some words, float32 (documents,); zeros if no word is known."""
        scores: np.ndarray = self.index.get_scores(words) if words else np.zeros(self.number, dtype=np.float32)
        return scores

    def best(self, words: list[str], count: int) -> list[int]:
        """At most `count` documents that hold one of the words, best first, equals in their order."""
        scores = self.scores(words)
        count = min(count, len(scores))
        threshold = np.partition(scores, -count)[-count]
        found = np.flatnonzero((scores >= threshold) & (scores > 0))
        ranked: list[int] = found[np.argsort(-scores[found], kind="stable")][:count].tolist()
        return ranked


class Library:
    """An index of the passages in a folder's books.

    Attributes:
        left_out: number of passages left out because they, or their neighbours, cover a question.
        unchecked: number of questions too short to be looked for in the passages.
        unread: names of other files in the folder and below it.
    """

    def __init__(
        self, key: str, passages: list[str], left_out: int = 0, unchecked: int = 0, unread: Sequence[str] = ()
    ) -> None:
        self.passages, self.left_out, self.unchecked, self.unread = passages, left_out, unchecked, unread
        self.index = Bm25(key, passages)

    @classmethod
    def read(cls, key: str, folder: str, questions: Sequence[Question] = ()) -> "Library":
        """Read the books of a folder: `.txt`, `.md`, and the column `text` of jsonl and parquet files.

        Args:
            key: the option that names `folder`, for error messages.
            questions: questions that no passage may cover, by the rule of decontamination.

        Raises:
            InputError: the folder does not exist, holds nothing to read, or every passage covers a question.
        """
        finder = QuestionFinder([*questions]) if questions else None
        kept: list[str] = []
        left_out = 0
        for text in tqdm(texts_of(key, folder), desc=f"reading {folder}", unit="text", disable=None, leave=False):
            covering = covering_passages(text, finder) if finder else set()
            kept += [passage for number, passage in enumerate(split_passages(text)) if number not in covering]
            left_out += len(covering)
        if left_out and not kept:
            raise InputError(f"{key}: all {left_out:,} passages of '{folder}' cover questions; use other books")
        if not kept:
            endings = ", ".join((*BOOK_SUFFIXES, *LOCAL_BUILDERS))
            raise InputError(f"{key}: '{folder}' holds no text; expected {endings}")
        read = {*book_files(folder)}
        unread = [file.name for file in files_below(folder) if str(file) not in read]
        return cls(key, kept, left_out, finder.unchecked if finder else 0, unread)

    def describe(self) -> str:
        """Numbers of passages kept and left out, of questions too short to check, and of files not read."""
        facts = [f"{len(self):,}; left out because they cover a question: {self.left_out:,}"]
        if self.unchecked:
            facts.append(f"questions too short to look for: {self.unchecked:,}")
        if self.unread:
            facts.append(f"files not read: {len(self.unread):,}, such as {', '.join(self.unread[:3])}")
        return "; ".join(facts)

    def __len__(self) -> int:
        return len(self.passages)

    def retrieve(self, questions: list[Question], number: int) -> list[Question]:
        """The questions, each with up to `number` of the best passages that share a word with it or its options."""
        found = []
        for question in tqdm(questions, desc="BM25", unit="question", disable=None, leave=False):
            best = self.index.best(content_words([query_of(question)])[0], number)
            found.append(replace(question, passages=tuple(self.passages[i] for i in best)))
        return found


def query_of(question: Question) -> str:
    """The text of the question and its options, whatever their order."""
    return " ".join([question.context, question.question, *sorted(question.options)])


def texts_of(key: str, folder: str) -> Iterator[str]:
    """The texts in a folder's files; `InputError` for one that cannot be read."""
    if not Path(folder).is_dir():
        raise InputError(f"{key}: '{folder}' is not a folder")
    for file in book_files(folder):
        try:
            if file.lower().endswith(BOOK_SUFFIXES):
                yield Path(file).read_text(encoding="utf-8-sig")
                continue
            for record in open_records(key, file):
                if "text" not in record or not isinstance(record["text"], str | None):
                    raise InputError(f"{key}: '{file}' has no column 'text'")
                yield record["text"] or ""
        except (OSError, ValueError, TypeError) as error:  # pyarrow's errors are ValueErrors
            raise InputError(f"{key}: cannot read '{file}': {first_line(error)}") from error


def book_files(folder: str) -> list[str]:
    """The files in a folder that hold texts."""
    return [*local_files(folder, BOOK_SUFFIXES), *local_files(folder, LOCAL_BUILDERS)]


def split_passages(text: str) -> list[str]:
    """Split a text into passages of 150 words, each on one line; the last may be shorter."""
    words = text.split()
    return [" ".join(words[start : start + PASSAGE_WORDS]) for start in range(0, len(words), PASSAGE_WORDS)]


def covering_passages(text: str, finder: QuestionFinder) -> set[int]:
    """Indices of a text's passages that overlap with a window of 150 words that covers a question.

    Windows overlap by half, which finds questions across two passages; the answer may follow in the second.
    """
    words = text.split()
    covering: set[int] = set()
    for start in range(0, len(words), PASSAGE_WORDS // 2):
        window = words[start : start + PASSAGE_WORDS]
        if finder.covers(" ".join(window)):
            covering |= {start // PASSAGE_WORDS, (start + len(window) - 1) // PASSAGE_WORDS}
    return covering


def fit_passages(
    question: Question,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    prompt: Callable[[Question], str],
    templated: bool = False,
) -> Question:
    """`cut_passages` so that `prompt(question)` has at most `max_tokens`; `templated` as in `prompt_ids`."""
    return cut_passages(question, lambda one: len(prompt_ids(tokenizer, [prompt(one)], templated)[0]) <= max_tokens)


def cut_passages(question: Question, fits: Callable[[Question], bool]) -> Question:
    """The question with as much of its passages as `fits`.

    The best passages are kept whole, the first that does not fit is cut at a word, and the rest are dropped.
    """
    if not question.passages or fits(question):
        return question
    kept: tuple[str, ...] = ()
    for passage in question.passages:
        if not fits(replace(question, passages=(*kept, passage))):
            break
        kept = (*kept, passage)
    ends = [0, *(word.end() for word in re.finditer(r"\S+", passage))]

    def is_too_long(words: int) -> bool:
        return not fits(replace(question, passages=(*kept, passage[: ends[words]])))

    words = bisect_left(range(1, len(ends) - 1), True, key=is_too_long)  # number of words that fit
    return replace(question, passages=(*kept, passage[: ends[words]]) if words else kept)


@dataclass(frozen=True)
class RetrievalMetrics:
    """Shares of right and of wrong options whose text is in the passages; mean number of passages."""

    right_found: float
    wrong_found: float
    passages: float


def retrieval_metrics(questions: list[Question]) -> RetrievalMetrics:
    """How often the passages of 1 question or more hold the options' texts, at word boundaries and ignoring case."""
    right, wrong = [], []
    for question in questions:
        passages = list(map(folded, question.passages))
        found = [any(mentions(passage, folded(option)) for passage in passages) for option in question.options]
        right.append(found.pop(question.answer))
        wrong.append(fmean(found))
    return RetrievalMetrics(fmean(right), fmean(wrong), fmean(len(question.passages) for question in questions))


def mentions(text: str, words: str) -> bool:
    """Whether a text holds these words at word boundaries."""
    return words in text and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None
