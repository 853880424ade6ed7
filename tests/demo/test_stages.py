"""A demo stage is done once, goes on after an interruption, and starts anew when what it was made from has changed."""

import json
import re

import pytest

from modeling_pure.console import DISCLAIMER
from modeling_pure.demo import __main__ as demo


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "RUNS", tmp_path)
    return tmp_path


class Work:
    """Counts its calls and leaves a file."""

    def __init__(self):
        self.found = []

    def __call__(self, folder):
        self.found.append(sorted(path.name for path in folder.iterdir() if path.name != "stage.json"))
        (folder / f"file{len(self.found)}").touch()


def test_a_done_stage_is_not_done_again():
    work = Work()
    assert demo.run_stage("a", "", b"recipe", work) == demo.run_stage("a", "", b"recipe", work)
    assert len(work.found) == 1


def test_an_interrupted_stage_goes_on_in_its_folder(runs):
    def interrupted(folder):
        (folder / "checkpoint").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run_stage("a", "", b"recipe", interrupted)
    work = Work()
    demo.run_stage("a", "", b"recipe", work)
    assert work.found == [["checkpoint"]]


def test_a_changed_recipe_starts_the_stage_and_all_after_it_anew():
    first, second = Work(), Work()
    for recipe in (b"old", b"new"):
        digest = demo.run_stage("first", "", recipe, first)
        demo.run_stage("second", digest, b"same", second)
    assert first.found == [[], []]
    assert second.found == [[], []]


def test_a_failing_command_ends_the_demo_with_its_code(monkeypatch):
    monkeypatch.setattr(demo.sys, "executable", "false")
    with pytest.raises(SystemExit) as stop:
        demo.run_command("train_pretrain.py")
    assert stop.value.code == 1


def test_a_seed_reaches_both_trainings():
    seeded = {name for name, command in demo.stages(7).items() if command.endswith(" --seed 7")}
    assert seeded == {"pretrain", "grpo"}


def write_evaluation(folder, right, questions=100):
    """An evaluation in which the first `right` questions were answered rightly."""
    folder.mkdir(parents=True)
    metrics = {"n": questions, "correct": right, "accuracy": right / questions, "wilson_interval": [0.0, 1.0]}
    data = {"task": "medqa_4options", "labels": dict.fromkeys("ABCD", 0)}
    results = {"metrics": metrics, "data": data, "model": {"name": folder.name}, "headline": {"name": "letter"}}
    (folder / "eval.json").write_text(json.dumps(results))
    lines = [{"id": str(i), "gold": "A", "prediction": "A" if i < right else "B"} for i in range(questions)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("before", "after", "code"), [(50, 60, 0), (50, 55, 1), (60, 50, 1), (50, 50, 1)])
def test_the_demo_fails_unless_grpo_raised_the_accuracy(runs, monkeypatch, capsys, before, after, code):
    write_evaluation(runs / "eval_before", before)
    write_evaluation(runs / "eval_after", after)
    (runs / "pretrain").mkdir()
    (runs / "pretrain" / "metrics.jsonl").write_text('{"eval_loss": 2.0}\n{"eval_loss": 1.5}\n')
    monkeypatch.setattr(demo, "sample_answer", lambda: "C. Nitrofurantoin")
    assert demo.show_results(seed=3) == code
    printed = capsys.readouterr().out
    assert re.search(r"\bseed 3\b", printed)
    assert re.search(r"\b2\.000\b.*\b1\.500\b", printed)
    assert DISCLAIMER in " ".join(printed.split())
