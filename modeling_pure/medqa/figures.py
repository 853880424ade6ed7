"""An evaluation as pictures: accuracies with intervals, calibration, and the labels that were answered."""

import io
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Any

from ..console import DISCLAIMER
from .results import Results
from .statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR, GREY = "#2a6f97", "#9a9a9a"
WIDTH, HEIGHT = 5.0, 3.6  # of a panel, inches
Draw = Callable[[Any, Results], None]


def draw_each(results: Results) -> dict[str, bytes]:
    """A PNG of each thing that was measured, 800 pixels wide, by what it shows."""
    from matplotlib.figure import Figure

    pictures = {}
    for title, panel in panels(results).items():
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=160, layout="constrained")
        draw_panel(figure.add_subplot(), title, panel, results)
        pictures[title] = as_png(figure)
    return pictures


def draw_all(results: Results) -> bytes:
    """All of them on one PNG, two side by side."""
    from matplotlib.figure import Figure

    found = panels(results)
    rows = ceil(len(found) / 2)
    figure = Figure(figsize=(2 * WIDTH, HEIGHT * rows), dpi=120, layout="constrained")
    for place, (title, panel) in enumerate(found.items(), start=1):
        draw_panel(figure.add_subplot(rows, 2, place), title, panel, results)
    figure.suptitle(f"{results.model.name} on {results.data.title}. {DISCLAIMER}", fontsize=8, wrap=True)
    return as_png(figure)


def panels(results: Results) -> dict[str, Draw]:
    """What there is to draw, by title."""
    found: dict[str, Draw] = {"Accuracy, 95 % interval": draw_accuracies}
    if results.metrics.calibration:
        found["Accuracy over confidence (size: questions)"] = draw_reliability
        found["Accuracy of the surest answers"] = draw_risk_coverage
    found["Answers"] = draw_labels
    if results.slices:
        found["Accuracy of slices, 95 % interval"] = draw_slices
    return found


def draw_panel(axis: "Axes", title: str, panel: Draw, results: Results) -> None:
    """Draw a panel under its title."""
    panel(axis, results)
    axis.set_title(title)
    axis.tick_params(labelsize=9)


def as_png(figure: "Figure") -> bytes:
    """A figure as the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw_accuracies(axis: "Axes", results: Results) -> None:
    """The model and what it is compared with."""
    rows = [("model", results.metrics.accuracy, results.metrics.wilson_interval)]
    rows += [(row.name, row.accuracy, row.wilson_interval) for row in results.comparisons if row.wilson_interval]
    draw_intervals(axis, rows, results.metrics.chance, model=0)


def draw_slices(axis: "Axes", results: Results) -> None:
    """Accuracies of the slices."""
    slices = results.slices.items()
    rows = [(f"{name} ({part.n})", part.accuracy, part.wilson_interval) for name, part in slices]
    draw_intervals(axis, rows, results.metrics.chance)


def draw_intervals(
    axis: "Axes", rows: list[tuple[str, float, Interval]], chance: float, model: int | None = None
) -> None:
    """Points with Wilson intervals, the first on top; chance as a line; the model's own is coloured."""
    for place, (_, accuracy, (low, high)) in enumerate(rows):
        colour, error = COLOUR if place == model else GREY, [[accuracy - low], [high - accuracy]]
        axis.errorbar(accuracy, place, xerr=error, fmt="o", color=colour, capsize=3, markersize=4)
    axis.axvline(chance, color="black", linewidth=0.8, linestyle=":")
    axis.locator_params(axis="x", nbins=5)
    axis.xaxis.set_major_formatter("{x:.0%}")
    # The end of a path says most.
    names = [name if len(name) <= 34 else f"...{name[-31:]}" for name, _, _ in rows]
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()


def draw_reliability(axis: "Axes", results: Results) -> None:
    """Accuracy over confidence; a calibrated model is on the diagonal."""
    assert results.metrics.calibration is not None
    bins = results.metrics.calibration.bins
    confidence, accuracy, n = ([b[name] for b in bins] for name in ("confidence", "accuracy", "n"))
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    axis.plot(confidence, accuracy, color=COLOUR, linewidth=1)
    axis.scatter(confidence, accuracy, s=[20 + 180 * size / max(n) for size in n], color=COLOUR, alpha=0.7)
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))


def draw_risk_coverage(axis: "Axes", results: Results) -> None:
    """Accuracy on the questions that the model is most confident of."""
    curve = results.metrics.risk_coverage
    assert curve is not None
    axis.plot(curve.coverage, curve.accuracy, color=COLOUR, marker="o", markersize=3)
    axis.axhline(results.metrics.chance, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel="share answered, surest first", ylabel="accuracy", xlim=(0, 1.02))


def draw_labels(axis: "Axes", results: Results) -> None:
    """How often each label was predicted, beside how often it is right."""
    bias = results.metrics.bias
    for offset, kind, counts, colour in ((-0.2, "gold", bias.gold, GREY), (0.2, "predicted", bias.predicted, COLOUR)):
        places = [i + offset for i in range(len(counts))]
        axis.bar(places, list(counts.values()), width=0.4, label=kind, color=colour)
    axis.set_xticks(range(len(bias.gold)), list(bias.gold))
    axis.set(ylabel="questions")
    axis.margins(y=0.2)  # for the legend
    axis.legend(loc="upper center", ncols=2)
