"""The demo's picture: it shows the accuracies, their intervals, and what the runs have logged."""

import json

import pytest

from modeling_pure.demo.picture import draw_demo
from modeling_pure.medqa.statistics import Share


def test_the_picture_shows_what_was_measured(tmp_path):
    logged = {
        "pretrain": [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0, "eval_loss": 2.5}],
        "grpo": [{"step": 5, "medqa/parse_rate": 0.5, "rewards/correct/mean": 0.4}, {"step": 5, "eval_loss": 0.0}],
    }
    for name, lines in logged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shares = {"before": Share(200, 0.5, (0.43, 0.57)), "after": Share(200, 0.7, (0.63, 0.76))}
    accuracy, loss, sampled = draw_demo(3, shares, tmp_path).axes
    assert [bar.get_height() for bar in accuracy.patches] == [0.5, 0.7]
    spans = [tuple(bar.get_segments()[0][:, 1]) for bar in accuracy.collections]
    assert spans == [pytest.approx(share.wilson_interval) for share in shares.values()]
    curves = [[*map(tuple, curve.get_xydata())] for curve in loss.lines]
    assert curves == [[(10, 3.0), (20, 2.0)], [(20, 2.5)]]
    assert [[*map(tuple, curve.get_xydata())] for curve in sampled.lines[:2]] == [[(5, 0.5)], [(5, 0.4)]]
    for axis in (accuracy, sampled):
        assert axis.get_ylim() == (0, 1)
        assert any({*curve.get_ydata()} == {0.25} for curve in axis.lines)
