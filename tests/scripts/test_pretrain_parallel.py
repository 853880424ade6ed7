"""Two processes take the steps of one: the same rows, and so the same losses, gradients and weights, DDP and FSDP2.

Rows are packed beforehand, which makes them the same for any number of processes. They are started by the files that
users start them with; `accelerate launch --cpu --num_processes 2` would start one without a word, so each test makes
sure that there are two.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.processes import ROOT, free_port, run
from tests.scripts.conftest import fsdp2_goes_on, metrics, run_two
from tests.scripts.runs import launches

SHARDED = "tests/scripts/fsdp_on_cpu.py"


@pytest.fixture(scope="module")
def options(pretrain_recipe, tmp_path_factory) -> list[str]:
    """A recipe on packed rows that states the tokens of a step; validation rows do not divide among the processes."""
    folder = tmp_path_factory.mktemp("packed") / "rows"
    run("-m", "modeling_pure.data.pack", "--config", pretrain_recipe, "--out", folder, "--rows", "64")
    recipe = yaml.safe_load(pretrain_recipe.read_text())
    del recipe["gradient_accumulation_steps"]
    recipe |= {"tokens_per_step": 256, "packed_dir": str(folder), "per_device_eval_batch_size": 3}
    stated = folder.with_name("recipe.yaml")
    stated.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return ["--config", str(stated)]


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory) -> Path:
    """The run of one process: 2 rows in a pass, 2 passes in a step, where each of two processes has one."""
    folder = tmp_path_factory.mktemp("alone")
    run("train_pretrain.py", *options, "--output_dir", folder)
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    """To fp32 rounding: the ranks' gradients are added in another order than the passes' of one process."""
    lines = [[line for line in metrics(folder) if "loss" in line or "eval_loss" in line] for folder in (one, other)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    names = [name for name in lines[0][0] if name in ("loss", "grad_norm", "learning_rate") or "/" in name]
    assert len(names) > 3
    for first, second in zip(*lines, strict=True):
        for name in set(first) & {*names, "eval_loss", "eval_loss/c4", "eval_bits_per_byte/c4"}:
            assert first[name] == pytest.approx(second[name], rel=2e-5), (name, first["step"])
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0, atol=2e-4)


def test_ddp_is_the_run_of_one_process(options, alone, tmp_path):
    run_two(*options, "--output_dir", tmp_path)
    assert_same_run(alone, tmp_path)


@pytest.mark.parametrize("setting", [("--optimizer", "muon"), ("--medqa_dev_questions", "4")])
def test_what_sharded_weights_cannot_do_is_refused(options, tmp_path, setting):
    said = run_two(*options, *setting, "--output_dir", tmp_path, script=SHARDED, machine="fsdp2", expect=1)
    assert f"error: {setting[0][2:]}: " in said
    assert not any(tmp_path.iterdir())


@fsdp2_goes_on
def test_fsdp2_is_the_run_of_one_process_and_goes_on(options, alone, tmp_path):
    assert "FSDP" in run_two(*options, "--output_dir", tmp_path, script=SHARDED, machine="fsdp2")
    assert_same_run(alone, tmp_path)
    for left in ("checkpoint-12", "model.safetensors", "trainer_state.json"):
        path = tmp_path / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "checkpoint-8" in run_two(*options, "--output_dir", tmp_path, script=SHARDED, machine="fsdp2")
    assert_same_run(alone, tmp_path)


def test_two_machines_are_the_run_of_one_process(options, alone, tmp_path):
    """Two launchers that meet by address, as on two machines, of one process each."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "accelerate_configs/multi_node.yaml",
    ]
    command += [
        "--num_machines",
        "2",
        "--num_processes",
        "2",
        "--main_process_port",
        str(free_port()),
        "--machine_rank",
    ]
    script = ["train_pretrain.py", *options, "--output_dir", str(tmp_path / "run")]
    with (tmp_path / "log").open("w") as log:
        machines = [
            subprocess.Popen(
                [*command, rank, *script],
                cwd=ROOT,
                env={**os.environ, "ACCELERATE_USE_CPU": "true"},
                stdout=log,
                stderr=log,
            )
            for rank in "01"
        ]
        ends = [machine.wait(300) for machine in machines]
    said = (tmp_path / "log").read_text()
    assert ends == [0, 0], said[-3000:]
    assert [launch["processes"] for launch in launches(tmp_path / "run")] == [2]
    assert_same_run(alone, tmp_path / "run")
