"""What an evaluation is told."""

from dataclasses import dataclass, field

from ..errors import InputError
from .permutations import ORDERS
from .scorers import SCORERS
from .tasks import TASKS, Task

SPLITS = ("test", "dev", "all")


@dataclass
class EvalArguments:
    """Model, questions, how they are asked, what stands beside the accuracy, and where the report goes."""

    model_name_or_path: str = field(
        default="runs/grpo", metadata={"help": "any causal language model: a folder or a Hub id"}
    )
    task: str = field(default="medqa_4options", metadata={"help": f"data set: {', '.join(TASKS)}"})
    questions: str | None = field(
        default=None, metadata={"help": "questions of that data set: local files or a Hub id; by default the Hub's"}
    )
    questions_config: str | None = field(default=None, metadata={"help": "the Hub data set's configuration"})
    split: str = field(
        default="test",
        metadata={
            "help": "test: the Hub's test split, or local files that are it; dev: the 10 %% held out of a train file; "
            "all: every row"
        },
    )
    scorer: str = field(
        default="letter",
        metadata={
            "help": "letter: as lm-evaluation-harness; cloze: the options' texts; generate: what the model writes"
        },
    )
    permutations: int = field(
        default=1, metadata={"help": "orders of the options, for letter: 1, 4 (rotations) or 24 (all)"}
    )
    num_samples: int = field(default=0, metadata={"help": "for generate: completions a question; 0 = greedy, one"})
    temperature: float = field(default=1.0, metadata={"help": "of sampled completions"})
    top_p: float = field(default=1.0, metadata={"help": "of sampled completions"})
    max_new_tokens: int = field(default=32, metadata={"help": "for generate: longest completion"})
    length_penalty_min_tokens: int = field(default=4, metadata={"help": "for generate: of the GRPO reward"})
    train_questions: str | None = field(
        default=None,
        metadata={"help": "train questions, as `questions`: a BM25 baseline over them, and a probe of memory"},
    )
    textbooks: str | None = field(
        default=None, metadata={"help": "folder of .txt, .md, .jsonl or .parquet: a BM25 baseline over them"}
    )
    compare_with: list[str] = field(
        default_factory=list,
        metadata={"help": "evaluations of other models on the same questions: the checkpoint before, the SFT twin"},
    )
    contamination: str | None = field(
        default=None, metadata={"help": "coverage file of python -m modeling_pure.data.decontaminate --coverage FILE"}
    )
    batch_size: int = field(default=16, metadata={"help": "rows in a forward pass"})
    seed: int = field(default=0, metadata={"help": "of sampled completions"})
    include_text: bool = field(
        default=False, metadata={"help": "write questions and completions to predictions.jsonl"}
    )
    update_card: bool = field(
        default=True, metadata={"help": "write the accuracy into the README.md of the model's folder"}
    )
    output_dir: str = field(default="runs/eval", metadata={"help": "folder for the report"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python code that comes with the model"})

    def __post_init__(self) -> None:
        for name, known in (("task", TASKS), ("split", SPLITS), ("scorer", SCORERS), ("permutations", ORDERS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {list(known)}, found {getattr(self, name)!r}")
        for name, least in (("batch_size", 1), ("max_new_tokens", 1), ("num_samples", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: expected {least} or more, found {getattr(self, name)}")
        if self.permutations > 1 and self.scorer != "letter":
            raise InputError(f"permutations: only the letter scorer sees an order; with {self.scorer} leave it at 1")
        if not TASKS[self.task].has_letters and (self.permutations > 1 or self.scorer != "letter"):
            raise InputError(f"scorer: {self.task} has no lettered options; only letter with permutations 1 fits it")
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise InputError("temperature: expected above 0, and top_p above 0 and at most 1")

    @property
    def data_set(self) -> Task:
        """The declaration of `task`."""
        return TASKS[self.task]
