"""Curves of a run as a picture."""

from pathlib import Path

from .callbacks import read_metrics


def plot_metrics(metrics_file: Path, picture: Path, panels: dict[str, list[str]]) -> None:
    """Draw logged metrics over steps.

    Args:
        panels: title of a panel -> the metrics drawn in it; a metric that was never logged is left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = read_metrics(metrics_file)
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 3.8), squeeze=False, layout="constrained")
    for axis, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 15 else None)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
