"""The content of `eval.json`. Shares and accuracies range from 0 to 1; intervals are [low, high] at 95 %."""

from typing import Any, NotRequired, TypedDict


class Share(TypedDict):
    """The accuracy on a set of questions, with its Wilson interval."""

    n: int
    accuracy: float
    wilson_interval: list[float]


class Slice(Share):
    """The accuracy on a subset of the questions; `small` if it has few."""

    small: bool


class Paired(TypedDict):
    """Two models on the same questions, as the metric `paired_mcq_comparison` returns it."""

    difference: float
    bootstrap_interval: list[float]
    only_first: int
    only_second: int
    p_value: float


class Compared(TypedDict):
    """The model compared with a baseline, another evaluation, or chance, which has no counts."""

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
    """A comparison with its Holm-adjusted p-value."""

    p_holm: float


class ModelFacts(TypedDict):
    """The model: name, number of parameters, and a digest of the weights."""

    name: str
    parameters: int
    sha256: str


class Flaws(TypedDict):
    """Rows of the questions with options of the same text (also the right one), with empty ones, with `&lt;`."""

    same_options: list[int]
    right_option_twice: list[int]
    empty_options: list[int]
    html_entities: list[int]


class DataFacts(TypedDict):
    """The questions: their origin, how many have each label, pairs [row, earlier row] of repeated ones, and flaws."""

    task: str
    title: str
    path: str
    split: str
    n: int
    sha256: str
    labels: dict[str, int]
    repeated_rows: list[list[int]]
    flaws: Flaws


class AskedDataFacts(DataFacts):
    """The questions after scoring: `cut_prompts` counts prompts that were cut to the context length."""

    cut_prompts: int


class Contamination(TypedDict):
    """Questions found in the training text (`contamination_metrics`); `documents` counts those read, by source."""

    documents: dict[str, int]
    checked: int
    too_short: int
    covered: int
    mean_coverage: float | None
    clean: Slice | None
    covered_accuracy: Slice | None


class Memorisation(Slice):
    """Train questions compared with the evaluated ones (`memorisation_metrics`); nll in nats over the options."""

    nll: float
    accuracy_gap: float
    accuracy_p: float
    nll_gap: float
    nll_p: float


class Headline(TypedDict):
    """The formulation that `metrics` are of: its name, why it is the headline, and what the model was taught."""

    name: str
    reason: str
    taught: list[str]
    warning: str | None


class Retrieval(TypedDict):
    """The passages of an open-book evaluation: `passages` kept and `left_out` by decontamination.

    `metrics` are those of `passages.retrieval_metrics`, on what of them fits before the question.
    """

    path: str
    passages: int
    left_out: int
    metrics: dict[str, Any]


class Results(TypedDict):
    """One evaluation; `seconds` is wall time.

    `metrics` are those of the headline, and `formulations` has the metrics of every formulation by name, with
    `cut_prompts`. Their keys depend on the scorer (`measure.measure`).
    """

    schema_version: int
    note: str
    model: ModelFacts
    config: dict[str, Any]
    data: AskedDataFacts
    headline: Headline
    metrics: dict[str, Any]
    formulations: dict[str, dict[str, Any]]
    retrieval: Retrieval | None
    slices: dict[str, Slice]
    comparisons: list[Comparison]
    contamination: Contamination | None
    memorisation: Memorisation | None
    test_runs: int
    seconds: float
    environment: dict[str, str]
