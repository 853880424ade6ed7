"""Pretraining under faults: kill -9, signals, a full disk, damaged checkpoints, other recipes, losses that blow up."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from modeling_pure.training.checkpoint import STATE_FILE, checkpoint_fault
from modeling_pure.training.saving import STAGING
from tests.processes import ROOT, Program, free_port, run
from tests.scripts.conftest import metrics, ranks_resume_on_cpus
from tests.scripts.runs import assert_same_run, checkpoints, contents, launches, lines_of_training, start_from, train

# Runs a script in this process group and kills the group when a file whose path ends in argv[1] is opened or renamed.
KILLED_AT = """
import os, runpy, signal, sys
place, *sys.argv = sys.argv[1:]
def kill(event, arguments):
    if event in ("open", "os.rename") and str(arguments[0]).endswith(place):
        os.killpg(0, signal.SIGKILL)
sys.addaudithook(kill)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(*command, launcher=()) -> subprocess.Popen:
    """Start a script in its own interpreter and process group, with pipes."""
    return subprocess.Popen(
        [sys.executable, *map(str, (*launcher, *command))],
        cwd=ROOT,
        env={**os.environ, "CI": "true", "ACCELERATE_USE_CPU": "true"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen | Program) -> tuple[int, str]:
    """Wait for a process; returns its exit code and stderr."""
    try:
        _, error = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, error


def once_at_step(step: int, folder, process: subprocess.Popen | Program) -> None:
    """Wait until a run has logged a step."""
    while process.poll() is None and not (logged(folder) and logged(folder)[-1] >= step):
        time.sleep(0.005)
    assert process.poll() is None, (
        "the run was over before a signal could be sent: " + process.communicate()[1][-3000:]
    )


def logged(folder) -> list[int]:
    """The steps of a run's complete log lines so far."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line)["step"] for line in lines]


def step_of_stop(error: str) -> int:
    """The step at which a run reports that it saved and stopped."""
    steps = set(re.findall(r"train_pretrain\.py: SIG(?:TERM|INT): .*?\bstep ([\d,]+)", error))
    assert len(steps) == 1, error[-3000:]
    return int(steps.pop().replace(",", ""))


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def test_a_run_killed_in_the_middle_of_its_saves_loses_nothing_else(pretrained, pretrain_recipe, tmp_path):
    command = ["train_pretrain.py", "--config", pretrain_recipe, "--output_dir", tmp_path]

    def killed_at(place: str) -> list[int]:
        code, error = end(Program("-c", KILLED_AT, f"{STAGING}/{place}", *command))
        assert code == -signal.SIGKILL, error[-3000:]
        return checkpoints(tmp_path)

    staged, whole = tmp_path / STAGING / "checkpoint-8", contents(pretrained / "checkpoint-8").keys()
    assert killed_at(f"checkpoint-8/{STATE_FILE}") == [4]
    # Trainer's pickle of the arguments is deleted.
    assert "optimizer.pt" in contents(staged)
    assert contents(staged).keys() - {"training_args.bin"} < whole
    assert "training_args.bin" not in whole
    assert killed_at("checkpoint-8") == [4]
    assert contents(staged).keys() == whole
    assert killed_at("model.safetensors") == [4, 8, 12]
    assert (tmp_path / STAGING / "model.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()
    run(*command)
    assert_same_run(pretrained, tmp_path, 12)
    assert [launch["from_step"] for launch in launches(tmp_path)] == [0, 4, 4, 12]


# ---- damaged checkpoints --------------------------------------------------------------------------------------------


def lose_a_file(checkpoint):
    (checkpoint / "optimizer.pt").unlink()


def truncate_a_file(checkpoint):
    os.truncate(checkpoint / "model.safetensors", 1000)


def empty_the_state(checkpoint):
    os.truncate(checkpoint / STATE_FILE, 0)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lose_a_file, r"optimizer\.pt"),
        (truncate_a_file, r"model\.safetensors .*\b1,000\b"),
        (empty_the_state, r"trainer_state\.json"),
    ],
)
def test_a_damaged_checkpoint_is_skipped(pretrained, pretrain_recipe, tmp_path, train_here, damage, why):
    shutil.copytree(pretrained / "checkpoint-4", tmp_path / "checkpoint-4")
    damage(start_from(pretrained, tmp_path, 8) / "checkpoint-8")
    output, _ = train_here("--config", pretrain_recipe, "--output_dir", tmp_path)
    assert re.search(f"{tmp_path / 'checkpoint-8'}: .*{why}", output)
    assert f"from {tmp_path / 'checkpoint-4'}" in output
    assert checkpoints(tmp_path) == [4, 8, 12]
    assert_same_run(pretrained, tmp_path, 12)


# ---- signals --------------------------------------------------------------------------------------------------------

LONGER = ["--max_steps", "100", "--save_steps", "40", "--eval_steps", "40", "--dataloader_num_workers", "2"]


@pytest.fixture(scope="module")
def longer(tmp_path_factory, pretrain_recipe):
    """An uninterrupted run that is long enough for a signal to arrive."""
    folder = tmp_path_factory.mktemp("longer")
    train(pretrain_recipe, folder, *LONGER)
    return folder


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_all_processes_of_a_run_loses_no_step(longer, pretrain_recipe, tmp_path, signum, code):
    command = ["train_pretrain.py", "--config", pretrain_recipe, "--output_dir", tmp_path, *LONGER]
    process = Program(*command)
    once_at_step(1, tmp_path, process)
    os.killpg(process.pid, signum)
    exit_code, error = end(process)
    assert exit_code == code, error[-3000:]
    assert "Traceback" not in error
    step = step_of_stop(error)
    assert checkpoints(tmp_path)[-1] == step == logged(tmp_path)[-1] < 100
    assert not (tmp_path / STAGING).exists()
    assert not (tmp_path / "model.safetensors").exists()
    assert f"from {tmp_path / f'checkpoint-{step}'}" in run(*command).stdout
    assert_same_run(longer, tmp_path, 100)


def test_ctrl_c_saves_though_it_has_ended_the_reader_of_the_log(pretrain_recipe, tmp_path):
    process = start("train_pretrain.py", "--config", pretrain_recipe, "--output_dir", tmp_path, *LONGER)
    once_at_step(1, tmp_path, process)
    process.send_signal(signal.SIGINT)
    process.stdout.close(), process.stderr.close()
    assert process.wait(60) == 130
    assert checkpoints(tmp_path)[-1] == logged(tmp_path)[-1] < 100


@ranks_resume_on_cpus
def test_a_signal_to_one_of_two_ranks_stops_both_after_the_same_step(pretrain_recipe, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command = ["train_pretrain.py", "--config", pretrain_recipe, "--output_dir", tmp_path]
    command += [*LONGER, "--gradient_accumulation_steps", "1"]
    process = start(*command, launcher=launcher)
    once_at_step(2, tmp_path, process)
    (rank,) = [child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1"]
    rank.send_signal(signal.SIGTERM)
    code, error = end(process)
    step = step_of_stop(error)
    assert code != 0
    assert re.search(r"exitcode\s*: 143", error)
    assert checkpoints(tmp_path)[-1] == step == logged(tmp_path)[-1] < 100
    checkpoint = tmp_path / f"checkpoint-{step}"
    assert (checkpoint / "rng_state_0.pth").exists()
    assert (checkpoint / "rng_state_1.pth").exists()
    code, error = end(start(*command, launcher=launcher))
    assert code == 0, error[-3000:]
    lines = [line for line in lines_of_training(tmp_path) if "loss" in line]
    assert [line["tokens"] for line in lines] == [step * 4 * 64 for step in range(1, 101)]
    assert lines[-1]["loss"] < lines[0]["loss"] - 1


# ---- a full disk ----------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_run_and_spoils_nothing(pretrained, pretrain_recipe, tmp_path):
    command = ["train_pretrain.py", "--config", pretrain_recipe, "--output_dir", start_from(pretrained, tmp_path, 4)]
    before = contents(tmp_path / "checkpoint-4")
    sizes = {file.name: file.stat().st_size for file in (pretrained / "checkpoint-8").iterdir()}
    for name in ("model.safetensors", "optimizer.pt"):
        limit = sizes[name] * 2 // 3
        code, error = end(Program(*command, file_size=limit))
        assert code == 3, error[-3000:]
        assert "Traceback" not in error
        (line,) = [line for line in error.splitlines() if "error: " in line]
        assert re.match(rf"train_pretrain\.py: error: output_dir: .*'{tmp_path}' .*\b8\b.*: ", line)
        assert checkpoints(tmp_path) == [4]
        assert contents(tmp_path / "checkpoint-4") == before
        assert not (tmp_path / STAGING).exists()
    run(*command)
    assert_same_run(pretrained, tmp_path, 12)


# ---- which checkpoints are kept -------------------------------------------------------------------------------------

WORSE = ["--learning_rate", "1", "--eval_steps", "2", "--save_steps", "2"]


def best_step(folder, step: int) -> int:
    """The best step up to a checkpoint, by its state and by the log."""
    losses = {line["eval_loss"]: line["step"] for line in metrics(folder) if "eval_loss" in line}
    best = losses[min(losses)]
    assert json.loads((folder / f"checkpoint-{step}" / STATE_FILE).read_text())["best_global_step"] == best
    return best


def test_the_newest_checkpoints_and_the_best_are_kept(pretrain_recipe, tmp_path):
    train(pretrain_recipe, tmp_path, *WORSE, "--save_total_limit", "2")
    best = best_step(tmp_path, 12)
    assert best < 10
    assert checkpoints(tmp_path) == [best, 10, 12]


def test_a_stopped_run_keeps_its_last_checkpoint_beside_the_best(pretrain_recipe, tmp_path):
    options = [*WORSE, "--save_total_limit", "1", "--max_steps", "200"]
    process = Program("train_pretrain.py", "--config", pretrain_recipe, "--output_dir", tmp_path, *options)
    once_at_step(9, tmp_path, process)
    process.send_signal(signal.SIGTERM)
    code, error = end(process)
    step = step_of_stop(error)
    best = best_step(tmp_path, step)
    assert code == 143
    assert best < step
    assert checkpoints(tmp_path) == [best, step]


def test_a_damaged_checkpoint_is_not_kept_in_place_of_a_new_one(pretrain_recipe, tmp_path, train_here):
    command = ["--config", pretrain_recipe, "--output_dir", tmp_path, *WORSE]
    train_here(*command, "--save_total_limit", "2")
    lose_a_file(tmp_path / "checkpoint-12")
    (tmp_path / STATE_FILE).unlink()
    output, _ = train_here(*command, "--save_total_limit", "1", "--max_steps", "11")
    assert f"from {tmp_path / 'checkpoint-10'}" in output
    assert checkpoint_fault(tmp_path / "checkpoint-11") is None
