"""Evaluation arguments, and what follows from them: the formulations of a run, and how completions are sampled."""

from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from ..errors import InputError
from ..options import (
    check_above_zero,
    check_choices,
    check_numbers,
    check_output_folder,
    check_seeds,
    check_shares,
    check_texts,
    option,
)
from .formats import ANSWER_FORMATS, headline_format, taught_formats, warn_untaught
from .formulations import BY_LETTER, BY_TEXT, CLOZE, ORDERS, Formulation, Plan
from .scorers import SCORERS, Sampling
from .tasks import TASKS, Task

SPLITS = ("test", "dev", "all")
ANSWER_TOKENS, REASONED_TOKENS = 32, 1024  # default limits of a completion


@dataclass
class EvalArguments:
    """Model, questions, scorers, comparisons, and the output folder."""

    model_name_or_path: str = option("runs/grpo", "causal model: a folder or a Hub id")
    task: str = option("medqa_4options", f"data set: {', '.join(TASKS)}")
    questions: str | None = option(None, "questions of that data set: local files or a Hub id; by default the Hub's")
    questions_config: str | None = option(None, "the Hub data set's configuration")
    split: str = option("test", "test: the Hub's, or local files; dev: 10 %% of a train file; all: every record")
    scorer: str = option(
        "auto",
        "headline. letter: as lm-evaluation-harness; text: the options' texts, with options shown; cloze: "
        "without; generate: generated answers; auto: as the model was taught, or letter",
    )
    beside: list[str] = option(["letter"], "further scorers to report; letter is always one")
    answer_format: str | None = option(
        None, "for generate: letter, text or reasoned; by default as the model was taught"
    )
    chat: bool = option(False, "for generate: prompt in the tokenizer's chat template")
    passages: str | None = option(None, "open book: folder of .txt, .md, .jsonl or .parquet to retrieve passages from")
    num_passages: int = option(3, "for passages: number of passages before a question")
    permutations: int = option(1, "orders of the options, for letter and text: 1, 4 or 24")
    num_samples: int = option(0, "for generate: completions per question; 0 = one, greedy")
    temperature: float = option(1.0, "of sampled completions")
    top_p: float = option(1.0, "of sampled completions")
    max_new_tokens: int | None = option(
        None, "for generate; by default 32, with reasons 1024, at most half of the context"
    )
    length_penalty_min_tokens: int = option(4, "for generate: of the GRPO reward")
    train_questions: str | None = option(
        None, "train questions, as `questions`: adds a BM25 baseline and a test for memorisation"
    )
    textbooks: str | None = option(None, "folder, as `passages`: adds a BM25 baseline over it")
    compare_with: list[str] = option([], "evaluations of other models on the same questions")
    contamination: str | None = option(None, "coverage file of `pure decontaminate --coverage FILE`")
    batch_size: int = option(16, "prompts in a forward pass")
    seed: int = option(0, "of sampled completions")
    include_text: bool = option(False, "put questions and completions in predictions.jsonl")
    update_card: bool = option(True, "write the accuracy into the model folder's README.md")
    output_dir: str = option("runs/eval", "folder for the report")
    trust_remote_code: bool = option(False, "run Python code that comes with the model")

    def __post_init__(self) -> None:
        check_texts(self)
        check_choices(self, task=TASKS, split=SPLITS, scorer=("auto", *SCORERS), permutations=ORDERS)
        check_choices(self, answer_format=(None, *ANSWER_FORMATS))
        check_numbers(self, batch_size=1, max_new_tokens=1, num_samples=0, num_passages=1, length_penalty_min_tokens=0)
        check_above_zero(self, "temperature", "top_p")
        check_shares(self, "top_p")
        check_seeds(self, "seed")
        check_output_folder("output_dir", self.output_dir)
        if unknown := {*self.beside} - {*SCORERS}:
            raise InputError(f"beside: expected scorers among {list(SCORERS)}, found {sorted(unknown)}")
        scorers = {self.scorer, *self.beside}
        if not self.data_set.has_letters and (scorers - {"auto", "letter"} or self.permutations > 1):
            raise InputError(f"scorer: {self.task} has no lettered options; use letter with permutations 1")
        for name in ("answer_format", "chat"):
            if getattr(self, name) and "generate" not in scorers:
                raise InputError(f"{name}: only for generated answers; set scorer to generate")

    @property
    def data_set(self) -> Task:
        """The declaration of `task`."""
        return TASKS[self.task]

    def plan(self, config: PreTrainedConfig) -> Plan:
        """The headline, its closed-book twin, those of `beside`, and always lm-evaluation-harness's letters."""
        taught = tuple(taught_formats(config))
        first = headline_format(taught)
        answer_format = self.answer_format or ("reasoned" if "reasoned" in taught else first)
        by_scorer = {each.scorer: each for each in (BY_LETTER, BY_TEXT, CLOZE)}
        by_scorer["generate"] = Formulation("generate", answer_format, self.chat)
        scorer = self.scorer
        reason = f"the model was taught {' and '.join(taught)}" if taught else "the model names no answer format"
        if not self.data_set.has_letters:
            scorer, reason = "letter", "the only one for a data set without lettered options"
        elif scorer == "auto":
            scorer = "generate" if first == "reasoned" else first
        else:
            reason = f"chosen with --scorer; {reason}"
        headline = replace(by_scorer[scorer], open_book=self.passages is not None)
        others = dict.fromkeys([headline.closed, *(by_scorer[name] for name in self.beside), BY_LETTER])
        others.pop(headline, None)
        formats = {each.answer_format: None for each in (headline, *others) if each.answer_format}
        if headline.answer_format != "letter":
            formats.pop("letter", None)  # reported with every model, whatever it was taught
        warnings = [warn_untaught(config, name) for name in formats if self.data_set.has_letters]
        return Plan(headline, tuple(others), taught, reason, "\n".join(filter(None, warnings)) or None)

    def sampling(self, plan: Plan, context: int) -> Sampling:
        """Sampling settings. By default completions with reasons may be longer, up to half of the context."""
        longest = self.max_new_tokens
        formats = [each.answer_format for each in plan.formulations if each.scorer == "generate"]
        if longest is None:
            longest = min(REASONED_TOKENS if "reasoned" in formats else ANSWER_TOKENS, context // 2)
        if formats and longest >= context:
            raise InputError(f"max_new_tokens: {longest} leave no room for a prompt in a context of {context}")
        return Sampling(
            self.num_samples, self.temperature, self.top_p, longest, self.length_penalty_min_tokens, self.seed
        )
