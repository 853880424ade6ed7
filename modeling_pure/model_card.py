"""Model cards: the `README.md` of a model folder, which trainers write and evaluations update.

A card is Markdown with the Hub's metadata on top. A block starts with `<!-- training: NAME -->` or
`<!-- evaluation: NAME -->` and ends with `<!-- end -->`; it may be replaced, or copied to the card of the next model.
All other text stays.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from .atomic import write_atomically
from .console import DISCLAIMER
from .medqa.metrics.medqa_accuracy.medqa_accuracy import standard_error, wilson_interval

CARD_FILE = "README.md"
TAGS = ["pure", "medical", "research", "not-for-clinical-use"]
BLOCK = re.compile(r"<!-- (training|evaluation): (.*?) -->\n(.*?)\n<!-- end -->", re.DOTALL)
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "max_position_embeddings", "vocab_size")
ATTENTION = ("num_attention_heads", "num_key_value_heads", "head_dim", "qk_norm")
SHAPE = ("model_type", *SIZES, *ATTENTION, "tie_word_embeddings")
NO_EVALUATION = "No evaluation has been written into this card yet."

LIMITS = f"""**{DISCLAIMER}** It is not a medical device, and nobody has evaluated whether its answers are safe.

- Multiple-choice accuracy is not clinical competence, whatever its value.
- It can state falsehoods fluently. Its confidence does not measure truth; the evaluation shows its calibration.
- English only; the questions reflect exams in the United States, and the texts may be outdated.
- Differences by sex, age or origin of the patients in a question have not been measured.
- Never enter data of real patients. You are responsible for what you build on it."""

LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH"{option})
tokenizer = AutoTokenizer.from_pretrained("PATH")
```"""
TRUST = """
`trust_remote_code` runs the Python files next to the weights; it is not needed after `import modeling_pure`."""


@dataclass(frozen=True)
class CardEvaluation:
    """One evaluation in a card.

    Args:
        dataset: its title; `path` is the Hub id or file.
        scorer: the formulation, e.g. `letter`.
        lines: further rows of the table: name and value.
        words: sentences below the table.
    """

    dataset: str
    path: str
    split: str
    scorer: str
    correct: int
    n: int
    lines: list[tuple[str, str]]
    words: list[str]

    @property
    def name(self) -> str:
        """Its identity: an evaluation of the same name replaces it."""
        return f"{self.dataset}, {self.split}, {self.scorer}"

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.correct / self.n

    def block(self) -> str:
        """The table and sentences, between comments."""
        low, high = wilson_interval(self.correct, self.n)
        rows = [
            ("**accuracy**", f"**{self.accuracy:.2%}** (95 % Wilson {low:.2%} to {high:.2%})"),
            ("questions", f"{self.n:,}, split {self.split}"),
            *self.lines,
        ]
        text = "\n\n".join([f"### {self.dataset} ({self.scorer})", two_columns(rows), *self.words])
        return block("evaluation", self.name, text)

    def metadata(self) -> EvalResult:
        """The accuracy for `model-index`."""
        interval = wilson_interval(self.correct, self.n)
        return EvalResult(
            task_type="multiple-choice",
            dataset_type=self.path,
            dataset_name=self.dataset,
            dataset_split=self.split,
            metric_type="accuracy",
            metric_name=f"accuracy ({self.scorer})",
            metric_value=round(self.accuracy, 6),
            metric_args={
                "standard_error": round(standard_error(self.correct, self.n), 6),
                "n": self.n,
                "wilson_95": [round(bound, 6) for bound in interval],
            },
        )


def write_model_card(
    folder: str,
    title: str,
    config: PreTrainedConfig,
    training: dict[str, dict[str, str]],
    evaluations: list[CardEvaluation],
    base_model: str | None = None,
) -> None:
    """Write the card of a run's folder.

    Args:
        training: facts of each training phase of this run, by its name.
        base_model: folder or Hub id of the initial model; training blocks are copied from a folder's card.
    """
    base_folder = Path(base_model) if base_model is not None and Path(base_model).is_dir() else None
    earlier = card_blocks(read_text(base_folder / CARD_FILE), "training") if base_folder else {}
    curves = "\n\n![curves of the run](curves.png)"
    phases = {name: text.replace(curves, "") for name, text in earlier.items() if name not in training}
    phases |= {name: f"### {name}\n\n{two_columns(list(facts.items()))}{curves}" for name, facts in training.items()}
    is_ours = config.model_type == "pure"
    data = ModelCardData(
        model_name=title,
        library_name="transformers",
        pipeline_tag="text-generation",
        language="en",
        license="apache-2.0" if is_ours else None,
        tags=TAGS,
        base_model=None if base_folder else base_model,
        eval_results=[evaluation.metadata() for evaluation in evaluations] or None,
    )
    evaluated = [evaluation.block() for evaluation in evaluations]
    parts = [
        f"# {title}",
        f"**{DISCLAIMER}**",
        "## Architecture",
        two_columns(architecture(config)),
        "## Training",
        *(block("training", name, text) for name, text in phases.items()),
        "## Evaluation",
        *(evaluated or [NO_EVALUATION]),
        "## Limits",
        LIMITS,
        "## Loading",
        LOADING.format(option=", trust_remote_code=True" if is_ours else "") + (TRUST if is_ours else ""),
        "## Licence",
        ("Apache-2.0, for weights and code." if is_ours else "That of the base model.")
        + " The training texts keep their own licences.",
    ]
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n\n".join(parts) + "\n")
    write_atomically(Path(folder) / CARD_FILE, str(card))


def add_evaluation(folder: str, evaluation: CardEvaluation) -> bool:
    """Add an evaluation to the card of a model folder, or replace the one of the same name.

    Returns:
        False if the folder has no card of ours; another README stays unchanged.
    """
    file = Path(folder) / CARD_FILE
    if not card_blocks(read_text(file), "training"):
        return False
    card = ModelCard.load(file)
    known = card_blocks(card.text, "evaluation")
    new = evaluation.block()
    if evaluation.name in known:
        card.text = card.text.replace(block("evaluation", evaluation.name, known[evaluation.name]), new)
    elif known:
        last = [match for match in BLOCK.finditer(card.text) if match[1] == "evaluation"][-1]
        card.text = f"{card.text[: last.end()]}\n\n{new}{card.text[last.end() :]}"
    else:
        card.text = card.text.replace(NO_EVALUATION, new, 1)
    entry = evaluation.metadata()
    identity = entry.dataset_name, entry.dataset_split, entry.metric_name
    others = [
        each
        for each in card.data.eval_results or []
        if (each.dataset_name, each.dataset_split, each.metric_name) != identity
    ]
    card.data.eval_results = [*others, entry]
    write_atomically(file, str(card))
    return True


def architecture(config: PreTrainedConfig) -> list[tuple[str, str]]:
    """The architecture of a decoder, from its configuration."""
    return [(name, str(getattr(config, name))) for name in SHAPE if getattr(config, name, None) is not None]


def block(kind: str, name: str, text: str) -> str:
    """A text between comments."""
    return f"<!-- {kind}: {name} -->\n{text}\n<!-- end -->"


def card_blocks(text: str, kind: str) -> dict[str, str]:
    """The blocks of one kind in a card, by name."""
    return {match[2]: match[3] for match in BLOCK.finditer(text) if match[1] == kind}


def read_text(file: Path) -> str:
    """A file's text, or an empty one if the file does not exist."""
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def two_columns(rows: list[tuple[str, str]]) -> str:
    """A Markdown table without a head."""
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
