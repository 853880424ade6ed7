"""The curves of a run: what is drawn, within which limits, and with which intervals."""

import json

import pytest
from matplotlib.image import imread

from modeling_pure.training.curves import Panel, draw_curves, write_curves

LOSS = Panel("loss", {"loss": "training", "eval_loss": "validation"})
RIGHT = Panel("right", {"eval_accuracy": "dev", "rewards": "sampled"}, "share", chance=0.25)


def lines_of(steps: int) -> list[dict]:
    """A loss that falls from 10 to 2 in the first tenth of the steps, and then to 1."""
    return [{"step": step, "loss": 10 - step * 80 / steps if step <= steps / 10 else 2.0} for step in range(steps)] + [
        {"step": steps, "loss": 1.0, "eval_loss": 1.1}
    ]


def test_the_first_tenth_of_a_run_does_not_scale_its_loss():
    (axis,) = draw_curves(lines_of(1000), [LOSS]).axes
    low, high = axis.get_ylim()
    assert 0.9 <= low < 1.0
    assert 2.0 < high <= 2.1
    assert [len(curve.get_xdata()) for curve in axis.lines] == [1001, 1]  # the first steps are still drawn


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0]])
def test_a_flat_curve_has_limits_around_it(values):
    lines = [{"step": step, "loss": value} for step, value in enumerate(values, start=1)]
    (axis,) = draw_curves(lines, [LOSS]).axes
    low, high = axis.get_ylim()
    assert low < values[0] < high


def test_accuracies_have_intervals_beside_chance():
    accuracies = [(20, 0.5, 0.05), (40, 0.6, 0.04)]
    lines = [{"step": step, "eval_accuracy": a, "eval_standard_error": e} for step, a, e in accuracies]
    (axis,) = draw_curves([*lines, {"step": 40, "rewards": 0.4}], [RIGHT]).axes
    assert axis.get_ylim() == (0, 1)
    heights = [path[:, 1] for bar in axis.collections for path in bar.get_segments()]
    assert [pytest.approx([a - 1.96 * e, a + 1.96 * e]) for _, a, e in accuracies] == heights
    assert any(set(curve.get_ydata()) == {0.25} for curve in axis.lines)
    labels = {text.get_text() for text in axis.get_legend().get_texts()}
    assert labels == {"dev", "sampled", "chance"}


def test_what_was_never_logged_is_left_out():
    lines = [{"step": 10, "loss": 1.0, "rewards": None}, {"step": 20, "loss": 0.5}]
    (axis,) = draw_curves(lines, [LOSS, RIGHT, Panel("speed", {"tokens": "all"}, "zero")]).axes
    assert len(axis.lines) == 1
    assert draw_curves(lines, [RIGHT]).axes == []


def test_the_picture_is_as_wide_as_a_page(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_of(20)))
    for panels in ([LOSS], [LOSS] * 3, [LOSS] * 4):
        write_curves(tmp_path, panels)
        assert imread(tmp_path / "curves.png").shape[1] == 1200
