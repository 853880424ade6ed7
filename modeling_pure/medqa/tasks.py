"""The evaluation data sets: location, record layout, prompt and labels of each.

Prompts and labels are those of lm-evaluation-harness (0.4.13, zero-shot), byte for byte, so that accuracies are
comparable.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .formats import format_options, medqa_prompt
from .question_files import FieldError, Fields, checked_texts, required_text
from .questions import COLUMNS, LETTERS, Question, question_from_record, read_questions


@dataclass(frozen=True)
class Task:
    """One data set.

    Args:
        name: lm-evaluation-harness's name of the task.
        path, config, split: location on the Hub; local files may replace it.
        prompt: the text up to and including `Answer:`, to which `format_prompt` adds passages.
        read_record: converts a record to a question.
        columns: the fields of a record, for error messages.
        labels: the possible continuations of the prompt, in the order of the options.
        set_name: its name in a file of several data sets, such as MIRAGE's, which merges MMLU's subjects (None).
    """

    name: str
    title: str
    path: str
    config: str | None
    split: str
    prompt: Callable[[Question], str]
    read_record: Callable[[Fields], Question] = question_from_record
    columns: str = COLUMNS
    labels: tuple[str, ...] = tuple(LETTERS)
    set_name: str | None = None

    @property
    def chance(self) -> float:
        """The expected accuracy of random answers."""
        return 1 / len(self.labels)

    @property
    def has_letters(self) -> bool:
        """Whether letters name the options, so that their order can change."""
        return self.labels == tuple(LETTERS)

    def read(self, key: str, path: str | None, config: str | None = None, split: str | None = None) -> list[Question]:
        """Read the questions of local files or a Hub data set; by default the task's own."""
        path, config = (path, config) if path else (self.path, config or self.config)
        return read_questions(key, path, config, split or self.split, self.read_record, self.columns, self.set_name)


def medmcqa_prompt(question: Question) -> str:
    """MedQA's prompt with an additional line `Choices:`."""
    return f"Question: {question.question}\nChoices:\n{format_options(question)}Answer:"


DECISIONS = ("yes", "no", "maybe")


def pubmedqa_question(record: Fields) -> Question:
    """A question from any of three layouts: upper-case columns, lower-case columns, or `contexts` within `context`."""
    record = {name.lower(): value for name, value in record.items()}
    question, decision = required_text(record, "question"), required_text(record, "final_decision")
    if decision not in DECISIONS:
        raise FieldError("final_decision", f"{decision!r} is not one of {', '.join(DECISIONS)}")
    name, contexts = "contexts", record.get("contexts")
    if contexts is None:
        nested = record.get("context")
        name, contexts = "context", nested.get("contexts") if isinstance(nested, Mapping) else None
    context = "\n".join(checked_texts(name, contexts))
    return Question(question, DECISIONS, DECISIONS.index(decision), context=context)


def pubmedqa_prompt(question: Question) -> str:
    """The abstract without its conclusion, then the question."""
    return f"Abstract: {question.context}\nQuestion: {question.question}\nAnswer:"


def mmlu(subject: str) -> Task:
    """A task for one subject of MMLU; its prompt starts with the subject's name."""
    words = subject.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {words}.\n\n"

    def prompt(question: Question) -> str:
        return f"{head}{question.question.strip()}\n{format_options(question)}Answer:"

    return Task(f"mmlu_{subject}", f"MMLU, {words}", "cais/mmlu", subject, "test", prompt)


MEDQA = Task(
    "medqa_4options",
    "MedQA-USMLE, four options",
    "GBaker/MedQA-USMLE-4-options",
    None,
    "test",
    medqa_prompt,
    set_name="medqa",
)
MEDMCQA = Task(
    "medmcqa", "MedMCQA", "openlifescienceai/medmcqa", None, "validation", medmcqa_prompt, set_name="medmcqa"
)
PUBMEDQA = Task(
    "pubmedqa",
    "PubMedQA",
    "qiaojin/PubMedQA",
    "pqa_labeled",
    "train",  # its only split: all 1,000 labelled questions, of which lm-evaluation-harness uses 500
    pubmedqa_prompt,
    pubmedqa_question,
    "'question', a list 'contexts' and 'final_decision'",
    DECISIONS,
    "pubmedqa",
)
MMLU_MEDICAL = (
    mmlu("anatomy"),
    mmlu("clinical_knowledge"),
    mmlu("college_biology"),
    mmlu("college_medicine"),
    mmlu("medical_genetics"),
    mmlu("professional_medicine"),
)
TASKS = {task.name: task for task in (MEDQA, MEDMCQA, PUBMEDQA, *MMLU_MEDICAL)}
