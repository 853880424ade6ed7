"""An evaluation as one picture: accuracies with intervals, calibration, and the letters that were answered."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..console import DISCLAIMER
from .schema import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR, GREY = "#2a6f97", "#9a9a9a"


def draw(results: Results) -> bytes:
    """A PNG with a panel for each thing that was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics = results["metrics"]
    panels: list[Callable[[Any, Results], None]] = [draw_accuracies, draw_labels, draw_confusion]
    if "calibration" in metrics:
        panels[1:1] = [draw_reliability, draw_risk_coverage]
    if results["slices"]:
        panels.append(draw_slices)
    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.9 * rows), layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=False):
        panel(axis, results)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(f"{results['model']['name']} on {results['data']['title']}. {DISCLAIMER}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def draw_accuracies(axis: "Axes", results: Results) -> None:
    """The model and what it is compared with, with 95 % Wilson intervals; chance as a line."""
    metrics = results["metrics"]
    rows = [("model", metrics["accuracy"], metrics["wilson_interval"])]
    rows += [(row["name"], row["accuracy"], row["wilson_interval"]) for row in results["comparisons"] if "n" in row]
    draw_intervals(axis, rows, metrics["chance"], model=0)
    axis.set(title="accuracy, 95 % interval")


def draw_slices(axis: "Axes", results: Results) -> None:
    """Accuracies of the slices."""
    rows = [
        (f"{name} ({part['n']})", part["accuracy"], part["wilson_interval"])
        for name, part in results["slices"].items()
    ]
    draw_intervals(axis, rows, results["metrics"]["chance"])
    axis.set(title="accuracy of slices (questions)")


def draw_intervals(
    axis: "Axes", rows: list[tuple[str, float, list[float]]], chance: float, model: int | None = None
) -> None:
    """Points with whiskers, the first on top; the model's own is coloured."""
    for place, (_, accuracy, (low, high)) in enumerate(rows):
        colour = COLOUR if place == model else GREY
        axis.errorbar(
            accuracy, place, xerr=[[accuracy - low], [high - accuracy]], fmt="o", color=colour, capsize=3, markersize=4
        )
    axis.axvline(chance, color="black", linewidth=0.8, linestyle=":")
    axis.locator_params(axis="x", nbins=5)
    axis.xaxis.set_major_formatter("{x:.1%}")
    axis.set_yticks(range(len(rows)), [shortened(name) for name, _, _ in rows], fontsize=7)
    axis.invert_yaxis()


def shortened(name: str) -> str:
    """The end of a long name: that of a path says most."""
    return name if len(name) <= 34 else f"...{name[-31:]}"


def draw_reliability(axis: "Axes", results: Results) -> None:
    """Accuracy over confidence; a calibrated model lies on the diagonal."""
    bins = results["metrics"]["calibration"]["bins"]
    biggest = max(b["n"] for b in bins)
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    axis.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], color=COLOUR, linewidth=1)
    axis.scatter(
        [b["confidence"] for b in bins],
        [b["accuracy"] for b in bins],
        s=[20 + 180 * b["n"] / biggest for b in bins],
        color=COLOUR,
        alpha=0.7,
    )
    axis.set(title="reliability (size: questions)", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))


def draw_risk_coverage(axis: "Axes", results: Results) -> None:
    """Accuracy on the questions that the model is surest of."""
    curve = results["metrics"]["risk_coverage"]
    axis.plot(curve["coverage"], curve["accuracy"], color=COLOUR, marker="o", markersize=3)
    axis.axhline(results["metrics"]["chance"], color="black", linewidth=0.8, linestyle=":")
    axis.set(title="accuracy over coverage", xlabel="share answered, surest first", ylabel="accuracy", xlim=(0, 1.02))


def draw_labels(axis: "Axes", results: Results) -> None:
    """How often each label was predicted, beside how often it is right."""
    bias = results["metrics"]["bias"]
    labels = list(bias["gold"])
    for offset, kind, colour in ((-0.2, "gold", GREY), (0.2, "predicted", COLOUR)):
        places = [i + offset for i in range(len(labels))]
        axis.bar(places, [bias[kind][label] for label in labels], width=0.4, label=kind, color=colour)
    axis.set_xticks(range(len(labels)), labels)
    axis.set(title="answers", ylabel="questions")
    axis.legend()


def draw_confusion(axis: "Axes", results: Results) -> None:
    """Counts of [right answer][prediction]."""
    bias = results["metrics"]["bias"]
    labels, confusion = list(bias["gold"]), bias["confusion"]
    axis.imshow(confusion, cmap="Blues")
    most = max(max(row) for row in confusion)
    for i, row in enumerate(confusion):
        for j, count in enumerate(row):
            axis.text(j, i, count, ha="center", va="center", color="white" if count > most / 2 else "black")
    axis.set_xticks(range(len(labels)), labels)
    axis.set_yticks(range(len(labels)), labels)
    axis.set(title="confusion", xlabel="predicted", ylabel="right")
