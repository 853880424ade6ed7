"""The demo on one picture: the accuracy before and after GRPO, and the curves that lead there."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..console import DISCLAIMER
from ..medqa.statistics import Share
from ..medqa.tasks import MEDQA
from ..training.curves import Panel, draw_panel, draw_shares
from ..training.run_folder import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#9a9a9a", "#2a6f97")  # before and after
LOSS = Panel(
    "Pretraining: loss (nats per token)", {"loss": "texts it reads", "eval_loss": "texts it has not seen"}, "zero"
)
ANSWERS = Panel(
    "GRPO: share of sampled answers",
    {"medqa/parse_rate": "readable", "rewards/correct/mean": "right"},
    "share",
    MEDQA.chance,
)


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
    draw_panel(loss, pretraining, LOSS)
    draw_panel(learned, grpo, ANSWERS)
    about = f"make demo, seed {seed}: a tiny model of a toy world, with 95 % Wilson intervals"
    figure.suptitle(f"{about}. {DISCLAIMER}", fontsize=9)
    return figure


def draw_accuracies(axis: "Axes", accuracies: dict[str, Share]) -> None:
    """A bar with its interval for each."""
    for place, (share, colour) in enumerate(zip(accuracies.values(), COLOURS, strict=True)):
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
    draw_shares(axis, MEDQA.chance)
    axis.legend(loc="upper left", fontsize=8)
    (n,) = {share.n for share in accuracies.values()}
    axis.set(title=f"{n} new questions: answered right")
