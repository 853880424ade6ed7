"""What `eval.json` holds. Shares and accuracies are from 0 to 1, intervals (low, high) at 95 %, times in seconds."""

from typing import Any, NotRequired, TypedDict


class Share(TypedDict):
    """The accuracy on some questions, with Wilson's interval."""

    n: int
    accuracy: float
    wilson_interval: list[float]


class Slice(Share):
    """The accuracy on a part of the questions, and whether these are few."""

    small: bool


class Paired(TypedDict):
    """Two models on the same questions: see the metric `paired_mcq_comparison`."""

    difference: float
    bootstrap_interval: list[float]
    only_first: int
    only_second: int
    p_value: float


class Compared(TypedDict):
    """A row beside the model's: a baseline, another evaluation, or chance, of which there are no answers to count."""

    name: str
    accuracy: float
    difference: float
    p_value: float
    n: NotRequired[int]
    wilson_interval: NotRequired[list[float]]
    bootstrap_interval: NotRequired[list[float]]
    only_first: NotRequired[int]
    only_second: NotRequired[int]


class Comparison(Compared):
    """The same with its p-value adjusted for all comparisons that were made."""

    p_holm: float


class ModelFacts(TypedDict):
    """The model: its name, size, and the digest of its weights."""

    name: str
    parameters: int
    sha256: str


class DataFacts(TypedDict):
    """The questions: where they are from, how many have each label, and (row, earlier row) of those asked twice."""

    task: str
    title: str
    path: str
    split: str
    n: int
    sha256: str
    labels: dict[str, int]
    repeated_rows: list[list[int]]


class AskedDataFacts(DataFacts):
    """The same once they were asked: how many prompts were cut to the model's context."""

    cut_prompts: int


class Contamination(TypedDict):
    """Questions found in the training text (`contamination.contamination_metrics`); documents read by source."""

    documents: dict[str, int]
    checked: int
    too_short: int
    covered: int
    mean_coverage: float | None
    clean: Slice | None
    covered_accuracy: Slice | None


class Memorisation(Slice):
    """Train questions beside the others (`contamination.memorisation_metrics`); nll in nats over the options."""

    nll: float
    accuracy_gap: float
    accuracy_p: float
    nll_gap: float
    nll_p: float


class Results(TypedDict):
    """An evaluation. `metrics` are those of `measure.measure`, of which some belong to one scorer."""

    schema_version: int
    note: str
    model: ModelFacts
    config: dict[str, Any]
    data: AskedDataFacts
    metrics: dict[str, Any]
    slices: dict[str, Slice]
    comparisons: list[Comparison]
    contamination: Contamination | None
    memorisation: Memorisation | None
    test_runs: int
    seconds: float
    environment: dict[str, str]
