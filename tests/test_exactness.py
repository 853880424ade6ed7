"""A resumed run is the run it would have been, and a comparison finds what differs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import exactness
from benchmarks.exactness import CHECKPOINT, STEPS, Scale, compare, compared_runs, weight_differences

ROOT = Path(__file__).parents[1]


def write_run(folder: Path, losses: dict[int, float], **weights: torch.Tensor) -> Path:
    """What a run leaves that is compared."""
    folder.mkdir()
    lines = [{"step": step, "loss": loss, "tokens_per_second": 100.0} for step, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "launches.jsonl").write_text(json.dumps({"from_step": CHECKPOINT}) + "\n")
    save_file(weights, folder / "model.safetensors")
    return folder


def test_equal_runs_are_equal(tmp_path):
    losses = {step: 7 - step / 10 for step in range(1, STEPS + 1)}
    weights = torch.randn(4, 3)
    whole = write_run(tmp_path / "whole", losses, a=weights)
    late = {step: losses[step] for step in losses if step > CHECKPOINT}  # a resumed run has no others
    row = compare(whole, write_run(tmp_path / "other", late, a=weights.clone()))
    assert row["equal"] and row["from_step"] == CHECKPOINT and row["first_loss_that_differs"] is None
    assert row["largest_loss_difference"] == row["weights_that_differ"] == row["largest_weight_difference"] == 0


def test_a_loss_and_a_weight_that_differ_are_found(tmp_path):
    losses = {step: 7 - step / 10 for step in range(1, STEPS + 1)}
    weights = torch.ones(4, 4)
    whole = write_run(tmp_path / "whole", losses, a=weights, b=torch.zeros(4))
    changed = weights.clone()
    changed[1, 2] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    other = write_run(tmp_path / "other", losses | {14: losses[14] + 1e-6}, a=changed, b=torch.zeros(4))
    row = compare(whole, other)
    assert not row["equal"] and row["first_loss_that_differs"] == 14
    assert row["largest_loss_difference"] == pytest.approx(1e-6)
    assert row["weights_that_differ"] == 1 / 20 and row["largest_weight_difference"] == 2.0**-23
    same_losses = compare(whole, write_run(tmp_path / "third", losses, a=changed, b=torch.zeros(4)))
    assert not same_losses["equal"] and same_losses["largest_loss_difference"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_compared(tmp_path, dtype):
    for name, value in (("a", 0.0), ("b", -0.0)):
        save_file({"w": torch.tensor([1.0, value], dtype=dtype)}, tmp_path / name)
    differences = weight_differences(tmp_path / "a", tmp_path / "b")
    assert differences == {"weights_that_differ": 0.5, "largest_weight_difference": 0.0}


def test_a_run_that_fails_is_a_row(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'RuntimeError: no such kernel' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert list(compared_runs(tmp_path / "recipe.yaml", ("again",), True)) == [
        {"run": "whole", "failed": "RuntimeError: no such kernel"}
    ]


def test_runs_are_compared_with_the_whole_one_and_only_a_resumed_one_has_its_checkpoint(tmp_path, monkeypatch):
    def trained(recipe: Path, run: Path, deterministic: bool) -> Path:
        found.append((run.name, [folder.name for folder in run.glob("*")]))
        run.mkdir(exist_ok=True, parents=True)
        (run / f"checkpoint-{CHECKPOINT}").mkdir(exist_ok=True)
        return run

    found = []
    monkeypatch.setattr(exactness, "train", trained)
    monkeypatch.setattr(exactness, "compare", lambda whole, other: {"compared": (whole.name, other.name)})
    rows = list(compared_runs(tmp_path / "recipe.yaml", Scale().runs, False))
    assert [row["compared"] for row in rows] == [("whole", "again"), ("whole", "resumed")]
    assert found == [("whole", []), ("again", []), ("resumed", [f"checkpoint-{CHECKPOINT}"])]


def test_a_resumed_run_is_the_whole_one_to_the_bit(tmp_path):
    command = [sys.executable, "-m", "benchmarks.exactness", "--tiny", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    line = json.loads(result.stdout)
    assert {"name", "unit", "ours", "peer", "peer_name", "ratio", "device", "versions"} <= set(line)
    assert line["ours"] == 0 and line["equal"] == {"resumed, full_determinism True": True}
    rows = json.loads((tmp_path / "exactness-tiny.json").read_text())
    (row,) = rows
    assert (row["run"], row["from_step"], row["full_determinism"]) == ("resumed", CHECKPOINT, True)
    assert row["equal"] and row["weights_that_differ"] == 0
    assert row["largest_loss_difference"] == row["largest_weight_difference"] == 0
    assert (tmp_path / "exactness-tiny.md").read_text().count("\n| ") == 2 + 1
