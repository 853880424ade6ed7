"""An evaluation as one picture: accuracies with intervals, calibration, and the labels that were answered."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..console import DISCLAIMER
from .results import Results
from .statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR, GREY, COLUMNS = "#2a6f97", "#9a9a9a", 3


def draw(results: Results) -> bytes:
    """A PNG with a panel for each thing that was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: list[Callable[[Any, Results], None]] = [draw_accuracies]
    if results.metrics.calibration:
        panels += [draw_reliability, draw_risk_coverage]
    panels.append(draw_labels)
    if results.slices:
        panels.append(draw_slices)
    rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(5.2 * COLUMNS, 3.9 * rows), layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=False):
        panel(axis, results)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(f"{results.model.name} on {results.data.title}. {DISCLAIMER}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def draw_accuracies(axis: "Axes", results: Results) -> None:
    """The model and what it is compared with."""
    rows = [("model", results.metrics.accuracy, results.metrics.wilson_interval)]
    rows += [(row.name, row.accuracy, row.wilson_interval) for row in results.comparisons if row.wilson_interval]
    draw_intervals(axis, rows, results.metrics.chance, model=0)
    axis.set(title="accuracy, 95 % interval")


def draw_slices(axis: "Axes", results: Results) -> None:
    """Accuracies of the slices."""
    slices = results.slices.items()
    rows = [(f"{name} ({part.n})", part.accuracy, part.wilson_interval) for name, part in slices]
    draw_intervals(axis, rows, results.metrics.chance)
    axis.set(title="accuracy of slices (questions)")


def draw_intervals(
    axis: "Axes", rows: list[tuple[str, float, Interval]], chance: float, model: int | None = None
) -> None:
    """Points with Wilson intervals, the first on top; chance as a line; the model's own is coloured."""
    for place, (_, accuracy, (low, high)) in enumerate(rows):
        colour, error = COLOUR if place == model else GREY, [[accuracy - low], [high - accuracy]]
        axis.errorbar(accuracy, place, xerr=error, fmt="o", color=colour, capsize=3, markersize=4)
    axis.axvline(chance, color="black", linewidth=0.8, linestyle=":")
    axis.locator_params(axis="x", nbins=5)
    axis.xaxis.set_major_formatter("{x:.1%}")
    # The end of a path says most.
    names = [name if len(name) <= 34 else f"...{name[-31:]}" for name, _, _ in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=7)
    axis.invert_yaxis()


def draw_reliability(axis: "Axes", results: Results) -> None:
    """Accuracy over confidence; a calibrated model is on the diagonal."""
    assert results.metrics.calibration is not None
    bins = results.metrics.calibration.bins
    confidence, accuracy, n = ([b[name] for b in bins] for name in ("confidence", "accuracy", "n"))
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    axis.plot(confidence, accuracy, color=COLOUR, linewidth=1)
    axis.scatter(confidence, accuracy, s=[20 + 180 * size / max(n) for size in n], color=COLOUR, alpha=0.7)
    axis.set(title="reliability (size: questions)", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))


def draw_risk_coverage(axis: "Axes", results: Results) -> None:
    """Accuracy on the questions that the model is most confident of."""
    curve = results.metrics.risk_coverage
    assert curve is not None
    axis.plot(curve.coverage, curve.accuracy, color=COLOUR, marker="o", markersize=3)
    axis.axhline(results.metrics.chance, color="black", linewidth=0.8, linestyle=":")
    axis.set(title="accuracy over coverage", xlabel="share answered, surest first", ylabel="accuracy", xlim=(0, 1.02))


def draw_labels(axis: "Axes", results: Results) -> None:
    """How often each label was predicted, beside how often it is right."""
    bias = results.metrics.bias
    for offset, kind, counts, colour in ((-0.2, "gold", bias.gold, GREY), (0.2, "predicted", bias.predicted, COLOUR)):
        places = [i + offset for i in range(len(counts))]
        axis.bar(places, list(counts.values()), width=0.4, label=kind, color=colour)
    axis.set_xticks(range(len(bias.gold)), list(bias.gold))
    axis.set(title="answers", ylabel="questions")
    axis.legend()
