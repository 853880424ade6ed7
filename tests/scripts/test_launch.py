"""Scripts as launchers start them: one run per folder, processes that find each other, and lost ranks."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

import train_grpo
import train_pretrain
from modeling_pure.training.launch import LOCK_FILE
from tests.processes import ROOT, free_port, hold
from tests.scripts.conftest import metrics
from tests.scripts.runs import contents, launches, lines_of_training, same_weights

PLAIN = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}


@pytest.fixture
def held(tmp_path):
    """A folder in which another process trains, and that process."""
    program = hold(tmp_path)
    yield tmp_path, program
    program.kill_group(signal.SIGKILL)


@pytest.mark.parametrize("phase", ["pretrain", "grpo", "sft"])
def test_two_runs_never_share_a_folder(held, train_here, pretrain_recipe, phase):
    folder, program = held
    before = contents(folder)
    if phase == "pretrain":
        options, script = ("--config", pretrain_recipe), train_pretrain
    else:  # refused before the model is looked for
        options, script = ("--algorithm", phase, "--model_name_or_path", folder / "none"), train_grpo
    said = train_here(*options, "--output_dir", folder, script=script, expect=2).err
    assert len(said.splitlines()) == 1
    assert re.search(rf"\b{program.pid}\b", said)
    assert contents(folder) == before


def test_bf16_of_the_launcher_is_that_of_the_option(train_here, pretrain_recipe, tmp_path, monkeypatch):
    short = "--max_steps", 1, "--warmup_steps", 0, "--eval_steps", 1, "--save_strategy", "no"
    options = "--config", pretrain_recipe, *short, "--dataloader_num_workers", 0, "--output_dir"
    folders = [tmp_path / name for name in ("fp32", "option", "launcher")]
    train_here(*options, folders[0])
    train_here(*options, folders[1], "--bf16", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert "bf16 autocast" in train_here(*options, folders[2])[0]
    fp32, option, launcher = (lines_of_training(folder) for folder in folders)
    assert option == launcher != fp32
    assert same_weights(*folders[1:])


# ---- two processes --------------------------------------------------------------------------------------------------


def torchrun(*options: object, starter: tuple[str, ...] = ("-m", "torch.distributed.run")) -> subprocess.Popen:
    """Start two processes of train_pretrain.py by plain torchrun on a CPU machine."""
    command = [sys.executable, *starter, "--nproc_per_node=2", f"--master_port={free_port()}", "train_pretrain.py"]
    return subprocess.Popen(
        [*command, *map(str, options)],
        cwd=ROOT,
        env={**PLAIN, "CI": "true", "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


@pytest.mark.slow
def test_plain_torchrun_on_a_cpu_machine_is_one_run(pretrain_recipe, tmp_path):
    options = "--gradient_accumulation_steps", 1, "--max_steps", 2, "--warmup_steps", 0
    run = torchrun("--config", pretrain_recipe, *options, "--output_dir", tmp_path)
    stdout, stderr = run.communicate(timeout=300)
    assert run.returncode == 0, stderr[-3000:]
    assert re.search(r"\b2 process", stdout)
    assert [launch["processes"] for launch in launches(tmp_path)] == [2]
    assert [line["tokens"] for line in metrics(tmp_path) if "tokens" in line] == [2 * 2 * 64, 2 * 2 * 2 * 64]
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.slow
def test_all_ranks_of_a_second_run_end(held, pretrain_recipe):
    folder, program = held
    before = contents(folder)
    run = torchrun("--config", pretrain_recipe, "--output_dir", folder, starter=("deploy/launch.py",))
    _, stderr = run.communicate(timeout=300)
    assert run.returncode == 2, stderr[-3000:]
    assert 1 <= len(re.findall(rf"train_pretrain.py: error: output_dir: .*\b{program.pid}\b", stderr)) <= 2
    assert contents(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["hangs", "is killed"])
def test_a_lost_rank_ends_the_run_and_is_named(pretrain_recipe, tmp_path, lost):
    options = "--gradient_accumulation_steps", 1, "--max_steps", 9999, "--eval_strategy", "no", "--save_steps", 9999
    run = torchrun("--config", pretrain_recipe, *options, "--output_dir", tmp_path, "--ddp_timeout", 15)
    while run.poll() is None and not ((tmp_path / "metrics.jsonl").exists() and metrics(tmp_path)):
        time.sleep(0.05)
    ranks = {process.environ().get("RANK"): process for process in psutil.Process(run.pid).children()}
    ranks["1"].send_signal(signal.SIGSTOP if lost == "hangs" else signal.SIGKILL)
    try:
        _, stderr = run.communicate(timeout=120)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 1
    lines = [line for line in stderr.splitlines() if "train_pretrain.py: error: " in line]
    assert len(lines) == 1, stderr[-3000:]
    assert re.search(rf"\brank 1 \(.*\b{ranks['1'].pid}\)", lines[0])
    assert 'train_pretrain.py", line' not in stderr  # no traceback of ours beside torchrun's own
    assert json.loads((tmp_path / "launches.jsonl").read_text())["processes"] == 2
