"""The demo on one picture: the accuracy before and after GRPO, and the curves that lead there."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import DISCLAIMER
from ..medqa.statistics import Share
from ..medqa.tasks import MEDQA
from ..training.run_folder import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, COLOUR, SECOND = "#9a9a9a", "#2a6f97", "#d1802f"
Lines = list[dict[str, Any]]


def draw_demo(seed: int, accuracies: dict[str, Share], runs: Path) -> "Figure":
    """A figure of 1,200 x 420 pixels.

    Args:
        accuracies: after reasons, on the held-out questions, before and after GRPO by name.
        runs: the folder of the demo's two runs.
    """
    from matplotlib.figure import Figure

    pretraining, grpo = (read_metrics(runs / name / METRICS_FILE) for name in ("pretrain", "grpo"))
    figure = Figure(figsize=(12, 4.2), dpi=100, layout="constrained")
    accuracy, loss, learned = figure.subplots(1, 3)
    draw_accuracies(accuracy, accuracies)
    draw_metrics(loss, pretraining, {"loss": "texts it reads", "eval_loss": "texts it has not seen"})
    loss.set(title="Pretraining: loss (nats per token)")
    loss.set_ylim(bottom=0)
    draw_metrics(learned, grpo, {"medqa/parse_rate": "readable", "rewards/correct/mean": "right"})
    draw_shares(learned)
    learned.set(title="GRPO: share of sampled answers")
    about = f"make demo, seed {seed}: a tiny model of a toy world, with 95 % Wilson intervals"
    figure.suptitle(f"{about}. {DISCLAIMER}", fontsize=9)
    return figure


def draw_accuracies(axis: "Axes", accuracies: dict[str, Share]) -> None:
    """A bar with its interval for each."""
    for place, (share, colour) in enumerate(zip(accuracies.values(), (GREY, COLOUR), strict=True)):
        low, high = share.wilson_interval
        axis.bar(place, share.accuracy, 0.6, color=colour)
        axis.errorbar(
            place,
            share.accuracy,
            yerr=[[share.accuracy - low], [high - share.accuracy]],
            fmt="none",
            color="black",
            capsize=5,
        )
        axis.text(place, high + 0.02, f"{share.accuracy:.1%}", ha="center")
    axis.set_xticks(range(len(accuracies)), [*accuracies])
    draw_shares(axis)
    (n,) = {share.n for share in accuracies.values()}
    axis.set(title=f"{n} new questions: answered right")


def draw_shares(axis: "Axes") -> None:
    """An axis from 0 to 100 %, with the accuracy of a guess as a line."""
    axis.axhline(MEDQA.chance, color="black", linewidth=1, linestyle=":", label="chance")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.legend(loc="upper left", fontsize=9)


def draw_metrics(axis: "Axes", lines: Lines, metrics: dict[str, str]) -> None:
    """Metrics over steps."""
    for (name, label), colour in zip(metrics.items(), (SECOND, COLOUR), strict=True):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=label)
    axis.set(xlabel="step", xlim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
