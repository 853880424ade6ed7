"""A demo stage runs once, continues after an interruption, and restarts when its inputs have changed."""

import json
import re

import numpy as np
import pytest
from matplotlib.image import imread

from modeling_pure.console import DISCLAIMER
from modeling_pure.demo import stages as demo
from modeling_pure.demo.world import EXAM_FILES, NEVER_ASKED_INFO
from modeling_pure.errors import InputError
from modeling_pure.medqa.results import read_evaluation


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


def test_an_interrupted_stage_resumes_in_its_folder(runs):
    def interrupted(folder):
        (folder / "checkpoint").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run_stage("a", "", b"recipe", interrupted)
    work = Work()
    demo.run_stage("a", "", b"recipe", work)
    assert work.found == [["checkpoint"]]


def test_a_changed_recipe_restarts_its_stage_and_all_later_ones():
    first, second = Work(), Work()
    for recipe in (b"old", b"new"):
        digest = demo.run_stage("first", "", recipe, first)
        demo.run_stage("second", digest, b"same", second)
    assert first.found == [[], []]
    assert second.found == [[], []]


def test_a_failing_command_ends_the_demo_with_its_code(monkeypatch):
    monkeypatch.setattr(demo.sys, "executable", "false")
    with pytest.raises(SystemExit) as stop:
        demo.run_command("pretrain", demo.RUNS)
    assert stop.value.code == 1


def test_without_a_clone_nothing_is_begun(runs, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setattr(demo.sys, "argv", ["pure demo"])
    with pytest.raises(InputError, match=r"^recipes/demo: "):
        demo.main()
    assert not list(runs.iterdir())


def test_a_seed_reaches_every_training():
    seeded = {name for name, command in demo.stages(7, twins=True).items() if " --seed 7" in command}
    assert seeded == {"pretrain", "grpo", *demo.TWINS}
    assert not {*demo.TWINS} & {*demo.stages(7, twins=False)}


def write_questions(folder, count=100):
    """Questions about one disease, whose correct letter is A; the last tenth are of a kind held out from training."""
    folder.mkdir()
    options = {"A": "right", "B": "wrong", "C": "other", "D": "last"}
    rows = [
        {
            "question": f"Question {i}?",
            "options": options,
            "answer_idx": "A",
            "meta_info": NEVER_ASKED_INFO if i >= count * 0.9 else "drug",
        }
        for i in range(count)
    ]
    (folder / EXAM_FILES[2]).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_evaluation(folder, right, texts_right=50, questions=100):
    """An evaluation in which the first `right` questions were answered rightly with reasons."""
    folder.mkdir(parents=True)
    metrics = {"n": questions, "correct": right}
    data = {"task": "medqa_4options", "labels": dict.fromkeys("ABCD", 0)}
    results = {"metrics": metrics, "data": data, "model": {"name": folder.name}, "headline": {"name": demo.HEADLINE}}
    (folder / "eval.json").write_text(json.dumps(results))
    lines = [
        {
            "id": str(i),
            "gold": "A",
            "prediction": "A" if i < right else None,
            "beside": {"letter": "B" if i % 4 else "A", "text": "A" if i < texts_right else "C"},
        }
        for i in range(questions)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("before", "after", "code"), [(50, 60, 0), (50, 55, 1), (60, 50, 1), (50, 50, 1)])
@pytest.mark.parametrize("twins", [False, True])
def test_the_demo_fails_unless_grpo_raised_the_accuracy(runs, monkeypatch, capsys, before, after, code, twins):
    write_questions(runs / "world")
    write_evaluation(runs / "eval_before", before)
    write_evaluation(runs / "eval_after", after, texts_right=77)
    for name in demo.TWINS if twins else ():
        write_evaluation(runs / f"eval_{name}", 95, texts_right=33)
    (runs / "pretrain").mkdir()
    lines = [{"step": 10, "loss": 3.0, "eval_loss": 2.0}, {"step": 20, "loss": 2.5, "eval_loss": 1.5}]
    (runs / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (runs / "grpo").mkdir()
    sampled = {"step": 10, "rewards/correct/mean": 0.3, "medqa/parse_rate": 0.4}
    (runs / "grpo" / "metrics.jsonl").write_text(json.dumps(sampled) + "\n")
    monkeypatch.setattr(demo, "sample_answer", lambda question: {"answer": "Nitrofurantoin (C)"})
    assert demo.show_results(3, twins) == code
    printed = capsys.readouterr().out
    assert re.search(r"\bseed 3\b", printed)
    assert re.search(r"\b2\.000\b.*\b1\.500\b", printed)
    assert DISCLAIMER in " ".join(printed.split())
    rows = [line for line in printed.splitlines() if "after GRPO" in line and not line.startswith("GRPO")]
    # With reasons, by text and by letter: of all questions, then of the held-out kind.
    assert [re.findall(r"(\d+\.\d) \(", row) for row in rows] == [
        [f"{after}.0", "77.0", "25.0"],
        ["0.0", "0.0", "20.0"],
    ]
    assert printed.count("33.0 (") == (3 if twins else 0)
    titles = [line for line in printed.splitlines() if re.match(r"\d+ ", line)]
    assert [re.findall(r"^\d+", line) for line in titles] == [["100"], ["10"]]
    assert all(len(line.rstrip()) <= 80 for line in printed.splitlines() if "(" in line and "GRPO" in line[:12])
    picture = imread(runs / demo.PICTURE_FILE)
    assert picture.shape[1] == 1200


def test_held_out_questions_are_reported_separately(runs):
    write_evaluation(runs / "eval", 95, texts_right=100)
    evaluation = read_evaluation("demo", str(runs / "eval"))

    def numbers(asked=None) -> list[str]:
        return [re.findall(r"(\d+\.\d) \(", cell)[0] for cell in demo.accuracies(evaluation, asked)]

    assert numbers() == ["95.0", "100.0", "25.0"]
    assert numbers(np.arange(100) >= 90) == ["50.0", "100.0", "20.0"]
