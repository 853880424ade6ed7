"""Pictures of an evaluation: as many as were measured, readable on a telephone, with intervals where they belong."""

import io
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from modeling_pure.medqa import figures
from modeling_pure.medqa.statistics import Share

COUNTS = {"A": 30, "B": 20, "C": 25, "D": 25}


def results(calibrated: bool, sliced: bool) -> SimpleNamespace:
    """What the pictures read of an evaluation of 100 questions."""
    bins = [{"confidence": 0.3, "accuracy": 0.2, "n": 60}, {"confidence": 0.7, "accuracy": 0.8, "n": 40}]
    curve = SimpleNamespace(coverage=[0.1, 1.0], accuracy=[0.8, 0.4])
    part = Share(n=50, accuracy=0.4, wilson_interval=(0.27, 0.54))
    return SimpleNamespace(
        model=SimpleNamespace(name="model"),
        data=SimpleNamespace(title="questions"),
        comparisons=[
            SimpleNamespace(name="chance", accuracy=0.25, wilson_interval=None),
            SimpleNamespace(name="x" * 60 + "end", accuracy=0.3, wilson_interval=(0.2, 0.4)),
        ],
        slices={"easy": part} if sliced else {},
        metrics=SimpleNamespace(
            accuracy=0.4,
            wilson_interval=(0.3, 0.5),
            chance=0.25,
            calibration=SimpleNamespace(bins=bins) if calibrated else None,
            risk_coverage=curve,
            bias=SimpleNamespace(gold=COUNTS, predicted=COUNTS),
        ),
    )


@pytest.mark.parametrize(("calibrated", "sliced", "count"), [(True, True, 5), (False, False, 2)])
def test_a_picture_for_each_thing_that_was_measured(calibrated, sliced, count):
    found = results(calibrated, sliced)
    pictures = figures.draw_each(found)
    assert len(pictures) == count
    assert all(imread(io.BytesIO(picture)).shape[1] == 800 for picture in pictures.values())
    assert imread(io.BytesIO(figures.draw_all(found))).shape[1] == 1200
    assert figures.draw_all(found) == figures.draw_all(found)


def test_accuracies_have_their_intervals_and_chance_is_a_line():
    axis = Figure().add_subplot()
    figures.draw_accuracies(axis, results(True, True))
    spans = [pytest.approx(bar.get_segments()[0][:, 0].tolist()) for bar in axis.collections]
    assert spans == [[0.3, 0.5], [0.2, 0.4]]
    assert any({*curve.get_xdata()} == {0.25} for curve in axis.lines)
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names[1].endswith("xend")
    assert len(names[1]) <= 34
