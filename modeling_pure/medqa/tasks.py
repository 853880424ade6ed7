"""The data sets that are evaluated, each a declaration: where it is, how a row is read, its prompt, its answers.

Prompts and answers are lm-evaluation-harness's (0.4.13, no examples before the question), byte for byte, so that any
accuracy here can be put beside one from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .formats import for_format, format_options, format_passages, medqa_prompt
from .questions import (
    LETTERS,
    MEDQA_COLUMNS,
    Question,
    checked_question,
    medmcqa_question,
    question_from_row,
    read_questions,
)


@dataclass(frozen=True)
class Task:
    """One data set.

    Args:
        name: lm-evaluation-harness's name of the task.
        path, config, split: where it is on the Hub; local files may stand in for them.
        read_row: makes a question of a row.
        columns: what a row needs, for the message where one lacks it.
        prompt: the text up to and including `Answer:`, in which `ask` changes what a format or open books need.
        labels: what may follow it, in the order of a question's options.
    """

    name: str
    title: str
    path: str
    config: str | None
    split: str
    read_row: Callable[[dict[str, Any]], Question]
    columns: str
    prompt: Callable[[Question], str]
    labels: tuple[str, ...] = tuple(LETTERS)

    @property
    def chance(self) -> float:
        """Accuracy of a guess without looking."""
        return 1 / len(self.labels)

    @property
    def has_letters(self) -> bool:
        """Whether options are named by letters, so that their order can be changed."""
        return self.labels == tuple(LETTERS)

    def ask(self, question: Question, answer_format: str = "letter") -> str:
        """The prompt in an answer format, with the question's passages before it."""
        return format_passages(question) + for_format(self.prompt(question), answer_format)

    def read(self, key: str, path: str | None, config: str | None = None, split: str | None = None) -> list[Question]:
        """The questions of local files or a Hub data set, by default those of the declaration."""
        path, config = (path, config) if path else (self.path, config or self.config)
        return read_questions(key, path, config, split or self.split, self.read_row, self.columns)


def medmcqa_prompt(question: Question) -> str:
    """MedQA's prompt with a line `Choices:`."""
    return f"Question: {question.question}\nChoices:\n{format_options(question)}Answer:"


DECISIONS = ("yes", "no", "maybe")


def pubmedqa_question(row: dict[str, Any]) -> Question:
    """From any of three layouts: upper-case columns, lower-case columns, or `contexts` within `context`."""
    row = {name.lower(): value for name, value in row.items()}
    contexts = row["contexts"] if "contexts" in row else row["context"]["contexts"]
    if row["final_decision"] not in DECISIONS:
        raise ValueError(f"final_decision {row['final_decision']!r} is none of {', '.join(DECISIONS)}")
    answer = DECISIONS.index(row["final_decision"])
    return checked_question(row["question"], list(DECISIONS), answer, context="\n".join(contexts))


def pubmedqa_prompt(question: Question) -> str:
    """The abstract without its conclusion, then the question."""
    return f"Abstract: {question.context}\nQuestion: {question.question}\nAnswer:"


def mmlu_question(row: dict[str, Any]) -> Question:
    """From `question`, four `choices`, `answer` (0..3) and `subject`."""
    if len(row["choices"]) != len(LETTERS):
        raise ValueError(f"{len(row['choices'])} choices where {len(LETTERS)} were expected")
    return checked_question(row["question"], list(row["choices"]), int(row["answer"]), row.get("subject"))


def mmlu(subject: str) -> Task:
    """One of MMLU's subjects, whose prompt begins by naming it."""
    words = subject.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {words}.\n\n"

    def prompt(question: Question) -> str:
        return f"{head}{question.question.strip()}\n{format_options(question)}Answer:"

    columns = "'question', 'choices' and 'answer'"
    return Task(f"mmlu_{subject}", f"MMLU, {words}", "cais/mmlu", subject, "test", mmlu_question, columns, prompt)


MEDQA = Task(
    "medqa_4options",
    "MedQA-USMLE, four options",
    "GBaker/MedQA-USMLE-4-options",
    None,
    "test",
    question_from_row,
    MEDQA_COLUMNS,
    medqa_prompt,
)
MEDMCQA = Task(
    "medmcqa",
    "MedMCQA",
    "openlifescienceai/medmcqa",
    None,
    "validation",
    medmcqa_question,
    "'question', 'opa'..'opd' and 'cop'",
    medmcqa_prompt,
)
PUBMEDQA = Task(
    "pubmedqa",
    "PubMedQA",
    "qiaojin/PubMedQA",
    "pqa_labeled",
    "train",  # its only split: all 1,000 labelled questions, of which lm-evaluation-harness takes 500
    pubmedqa_question,
    "'question', 'contexts' and 'final_decision'",
    pubmedqa_prompt,
    DECISIONS,
)
MMLU_MEDICAL = tuple(
    mmlu(subject)
    for subject in (
        "anatomy",
        "clinical_knowledge",
        "college_biology",
        "college_medicine",
        "medical_genetics",
        "professional_medicine",
    )
)
TASKS = {task.name: task for task in (MEDQA, MEDMCQA, PUBMEDQA, *MMLU_MEDICAL)}
