"""A run on Ray resumes after one of its processes is killed, and ends like an undisturbed run."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.processes import ROOT
from tests.scripts.conftest import run_ranks
from tests.scripts.runs import launches, same_weights

pytest.importorskip("ray")


def worker_of(run: str) -> psutil.Process | None:
    """A training process of a run: all processes of its own Ray cluster carry the name in their environment."""
    for process in psutil.process_iter():
        try:
            if "TrainWorker" in " ".join(process.cmdline()) and process.environ().get("PURE_TEST_RUN") == run:
                return process
        except psutil.Error:  # has ended, or is somebody else's
            continue
    return None


@pytest.mark.slow
def test_a_killed_process_is_restarted_and_ends_with_the_same_weights(pretrain_recipe, tmp_path):
    options = ["train_pretrain.py", "--config", str(pretrain_recipe), "--max_steps", "48", "--output_dir"]
    run_ranks(*options, tmp_path / "straight")
    folder, run = tmp_path / "run", str(tmp_path)
    command = ["deploy/ray/train.py", "--num_workers", "2", "--cpu", "--shared", str(tmp_path / "ray")]
    environment = {**os.environ, "PURE_TEST_RUN": run, "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, *command, *options, str(folder)], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        while driver.poll() is None and not (folder / "checkpoint-4").exists():
            time.sleep(0.02)
        worker = worker_of(run)
        assert worker, (tmp_path / "log").read_text()[-3000:]
        worker.send_signal(signal.SIGKILL)
        assert driver.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
    first, second = launches(folder)
    assert first["from_step"] == 0
    assert 4 <= second["from_step"] < 48
    assert second["processes"] == 2
    assert "train_pretrain.py" in second["command"].split()[0]
    assert same_weights(tmp_path / "straight", folder)
