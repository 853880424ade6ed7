"""The batch script itself, with programs named srun and scontrol that do what Slurm's do, and real signals.

docs/DEPLOYMENT_GUIDE.md says what was seen under a real Slurm; these are the same cases without one.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.deploy.conftest import ROOT
from tests.scripts.conftest import metrics, pretrain_recipe  # noqa: F401

SCRIPT = ROOT / "deploy/slurm/train.sbatch"

# Starts a command once per task across the nodes and exits with the highest code, as srun does.
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
arguments = sys.argv[1:]
while arguments[0].startswith("--"):
    arguments.pop(0)
tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"])
started = [
    subprocess.Popen(
        arguments, env={{**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % (tasks // nodes))}}
    )
    for i in range(tasks)
]
codes = [one.wait() for one in started]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """#!/bin/bash
case "$1" in
    show) printf '%s\\n' first second ;;
    requeue) echo "$2" >>"$REQUEUED" ;;
esac
"""
# Records its arguments and environment; then exits with the given code, or waits for a signal.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, lambda signum, frame: sys.exit(128 + signum))
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
told = {name: os.environ.get(name) for name in names} | {"pid": os.getpid(), "arguments": sys.argv[2:]}
file = Path(sys.argv[1]) / f"told-{os.environ['SLURM_PROCID']}"
file.with_suffix(".new").write_text(json.dumps(told))
file.with_suffix(".new").rename(file)
time.sleep(120 if sys.argv[2] == "wait" else 0)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Start the batch script on two nodes with these arguments and number of tasks."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "program.py").write_text(PROGRAM)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def submit(*arguments, tasks: int = 1) -> subprocess.Popen:
        slurm = {
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "[first-second]",
            "SLURM_NTASKS": str(tasks),
            "SLURM_NNODES": str(min(tasks, 2)),
            "SLURM_CPUS_PER_TASK": "1",
        }
        path = f"{tmp_path}:{os.environ['PATH']}"
        mine = {"PATH": path, "PYTHON": sys.executable, "REQUEUED": str(tmp_path / "requeued"), "CI": "true"}
        return subprocess.Popen(["bash", SCRIPT, *map(str, arguments)], cwd=ROOT, env={**os.environ, **slurm, **mine})

    return submit


def told(folder, job: subprocess.Popen, tasks: int) -> list[dict]:
    """What the tasks recorded, once all have started."""
    while job.poll() is None and len(list(folder.glob("told-?"))) < tasks:
        time.sleep(0.02)
    files = sorted(folder.glob("told-?"))
    assert len(files) == tasks
    return [json.loads(file.read_text()) for file in files]


def requeued(folder) -> list[str]:
    """The jobs that were queued again."""
    file = folder / "requeued"
    return file.read_text().split() if file.exists() else []


@pytest.mark.parametrize("code", [0, 1, 2, 3, 137])
def test_a_run_that_ended_by_itself_is_not_queued_again(submit, tmp_path, code):
    assert submit(tmp_path / "program.py", tmp_path, code).wait(timeout=30) == code
    assert requeued(tmp_path) == []


@pytest.mark.parametrize(("signum", "expect"), [(signal.SIGTERM, ["4711"]), (signal.SIGINT, [])])
def test_a_run_that_sigterm_stopped_is_queued_again_and_after_sigint_it_is_not(submit, tmp_path, signum, expect):
    job = submit(tmp_path / "program.py", tmp_path, "wait", tasks=4)
    for task in told(tmp_path, job, 4):  # Slurm signals the processes of the job's step
        os.kill(task["pid"], signum)
    assert job.wait(timeout=30) == 128 + signum
    assert requeued(tmp_path) == expect


def test_each_task_knows_its_place(submit, tmp_path):
    job = submit(tmp_path / "program.py", tmp_path, 0, "--sources.c4.path", "a b/*.parquet", tasks=4)
    assert job.wait(timeout=30) == 0
    tasks = told(tmp_path, job, 4)
    assert [task["RANK"] for task in tasks] == ["0", "1", "2", "3"]
    assert [task["LOCAL_RANK"] for task in tasks] == ["0", "1", "0", "1"]
    assert {task["WORLD_SIZE"] for task in tasks} == {"4"}
    assert {task["MASTER_ADDR"] for task in tasks} == {"first"}
    assert {task["MASTER_PORT"] for task in tasks} == {"14711"}
    assert all(task["arguments"] == ["0", "--sources.c4.path", "a b/*.parquet"] for task in tasks)


def test_one_task_alone_is_no_rank(submit, tmp_path):
    job = submit(tmp_path / "program.py", tmp_path, 0)
    assert job.wait(timeout=30) == 0
    assert told(tmp_path, job, 1)[0]["RANK"] is None


def test_a_training_that_is_stopped_goes_on(submit, tmp_path, pretrain_recipe):  # noqa: F811
    run = tmp_path / "run"
    options = ["train_pretrain.py", "--config", pretrain_recipe, "--output_dir", run, "--max_steps", "200"]
    options += ["--save_steps", "200", "--eval_steps", "200"]
    job = submit(*options)
    while job.poll() is None and not ((run / "metrics.jsonl").exists() and metrics(run)):  # its workers are there
        time.sleep(0.02)
    (srun,) = psutil.Process(job.pid).children()
    for process in srun.children(recursive=True):  # data loader workers, too
        process.terminate()
    assert job.wait(timeout=60) == 143
    assert requeued(tmp_path) == ["4711"]
    (stopped,) = (int(folder.name.removeprefix("checkpoint-")) for folder in run.glob("checkpoint-*"))
    assert submit(*options).wait(timeout=120) == 0
    assert requeued(tmp_path) == ["4711"]
    starts = [json.loads(line)["from_step"] for line in (run / "launches.jsonl").read_text().splitlines()]
    assert starts == [0, stopped]
    assert metrics(run)[-1]["step"] == 200


def test_slurm_signals_the_training_and_not_the_shell():
    """With B: the shell would get the signal, which cannot save; a run that has saved in 120 s has the time."""
    (given,) = re.findall(r"^#SBATCH --signal=(\S+)$", SCRIPT.read_text(), re.M)
    name, seconds = given.split("@")
    assert name == "TERM"
    assert int(seconds) >= 120
    assert "\n#SBATCH --requeue\n" in SCRIPT.read_text()
