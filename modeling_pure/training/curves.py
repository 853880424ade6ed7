"""The curves of a run, drawn from its `metrics.jsonl`."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .run_folder import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES_FILE = "curves.png"
LATE = 0.1  # of a run; what came before does not scale an axis
FEW_POINTS = 15  # that are marked one by one
DEV_ACCURACIES = {"eval_medqa_accuracy": "dev, by letter", "eval_medqa_text_accuracy": "dev, by text"}
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One plot of metrics over steps.

    Attributes:
        metrics: the names of metrics -> their names in the legend. An accuracy has a 95 % interval where its standard
            error was logged.
        scale: of the values: `late`, of all but the first steps, which would press the rest of a loss flat; `zero`,
            from zero; `share`, from 0 to 100 %.
        chance: accuracy of a guess, drawn as a line of a `share`.
    """

    title: str
    metrics: dict[str, str]
    scale: Literal["late", "zero", "share"] = "late"
    chance: float | None = None


def write_curves(folder: Path, panels: Sequence[Panel]) -> None:
    """Write `curves.png` into a run's folder; a panel or metric that was never logged is left out."""
    lines = read_metrics(folder / METRICS_FILE)
    draw_curves(lines, panels).savefig(folder / CURVES_FILE)


def draw_curves(lines: Lines, panels: Sequence[Panel]) -> "Figure":
    """A figure of 1,200 pixels' width with the panels of which something was logged."""
    from matplotlib.figure import Figure

    logged = {name for line in lines for name, value in line.items() if value is not None}
    panels = [panel for panel in panels if logged & {*panel.metrics}]
    columns = 3 if len(panels) == 3 else 2
    rows = max(1, ceil(len(panels) / columns))
    figure = Figure(figsize=(10, 3.4 * rows), dpi=120, layout="constrained")
    for place, panel in enumerate(panels, start=1):
        draw_panel(figure.add_subplot(rows, columns, place), lines, panel)
    return figure


def draw_panel(axis: "Axes", lines: Lines, panel: Panel) -> None:
    """Draw the metrics of a panel that were logged."""
    shown = []
    for name, label in panel.metrics.items():
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < FEW_POINTS else None
        (curve,) = axis.plot(steps, values, label=label, marker=marker, markersize=4)
        shown += points
        draw_intervals(axis, lines, name, curve.get_color())
    axis.set(title=panel.title, xlabel="step", xlim=(0, 1.02 * max(line["step"] for line in lines)))
    axis.grid(alpha=0.3)
    if panel.scale == "share":
        draw_shares(axis, panel.chance)
    elif panel.scale == "zero":
        axis.set_ylim(bottom=0)
    else:
        axis.set_ylim(*late_limits(shown))
    if len(panel.metrics) > 1:
        axis.legend(fontsize=8, framealpha=0.6)


def draw_shares(axis: "Axes", chance: float | None) -> None:
    """Scale an axis from 0 to 100 %, and draw the accuracy of a guess as a line."""
    if chance is not None:
        axis.axhline(chance, color="black", linewidth=1, linestyle=":", label="chance")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter("{x:.0%}")


def draw_intervals(axis: "Axes", lines: Lines, name: str, colour: Any) -> None:
    """Draw the 95 % intervals of an accuracy whose standard error was logged."""
    error = name.removesuffix("accuracy") + "standard_error"
    for line in lines if name.endswith("accuracy") else []:
        if line.get(error) is not None:
            axis.errorbar(line["step"], line[name], yerr=1.96 * line[error], color=colour, alpha=0.6, capsize=3)


def late_limits(points: list[tuple[int, float]]) -> tuple[float, float]:
    """The lowest and highest value of all but the first steps, with a margin."""
    start = LATE * max(step for step, _ in points)
    late = [value for step, value in points if step >= start]
    margin = 0.05 * (max(late) - min(late)) or 0.05 * abs(late[0]) or 1.0
    return min(late) - margin, max(late) + margin
