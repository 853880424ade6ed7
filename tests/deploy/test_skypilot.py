"""The SkyPilot task, whose `run` is started as SkyPilot would. SkyPilot's own parser is too heavy for this suite."""

import os
import re
import shlex
import signal
import subprocess
import sys

import pytest

from tests.deploy.conftest import DEPLOY, ROOT, SHELLCHECK, accepted, documents

(TASK,) = documents(DEPLOY / "skypilot/train.yaml")
PROGRAM = """
import os, sys
from pathlib import Path
names = ("RANK", "WORLD_SIZE")
told = [os.environ.get(name, "-") for name in names] + sys.argv[2:]
(Path(__file__).parent / f"told-{told[0]}").write_text(" ".join(told))
"""


def run(folder, gpus: int, **envs: str) -> list[str]:
    """Run the task's commands in a folder like the repository's; returns each rank's arguments and environment."""
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to(sys.executable)
    (folder / "deploy").symlink_to(DEPLOY)
    (folder / "program.py").write_text(PROGRAM)
    sky = {"SKYPILOT_NUM_GPUS_PER_NODE": str(gpus), "PYTHONPATH": ":".join(path for path in sys.path if path)}
    environment = {**os.environ, **sky, **TASK["envs"], "SCRIPT": "program.py", "HUB_MODEL_ID": "me/pure", **envs}
    subprocess.run(["bash", "-c", TASK["run"]], cwd=folder, env=environment, check=True)
    return [file.read_text() for file in sorted(folder.glob("told-*"))]


def test_the_default_run_is_accepted_and_kept_on_the_hub(tmp_path, monkeypatch):
    (told,) = run(tmp_path, gpus=1)
    options = shlex.split(told)[2:]
    config = TASK["envs"]["RECIPE"]
    assert options[0] == config
    *_, training = accepted([TASK["envs"]["SCRIPT"], "--config", *options], monkeypatch)
    assert training.push_to_hub
    assert training.hub_model_id == "me/pure"
    assert training.hub_private_repo
    assert training.hub_strategy == "checkpoint"
    assert training.save_steps % training.eval_steps == 0


def test_several_gpus_are_several_ranks(tmp_path):
    told = run(tmp_path, gpus=2, OPTIONS="--a b")
    assert [line.split()[:2] for line in told] == [["0", "2"], ["1", "2"]]
    assert all(" --a b --push_to_hub " in line for line in told)


def test_only_a_run_that_has_saved_is_started_again():
    recovery = TASK["resources"]["job_recovery"]
    assert recovery == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [128 + signal.SIGTERM]}
    assert TASK["resources"]["use_spot"]


def test_what_the_user_gives_has_no_default():
    assert TASK["envs"]["HUB_MODEL_ID"] is None
    assert TASK["secrets"] == {"HF_TOKEN": None}


@pytest.mark.parametrize("part", ["setup", "run"])
def test_shellcheck_has_nothing_to_say(part):
    result = subprocess.run([SHELLCHECK, "--shell=bash", "-"], input=TASK[part], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_setup_installs_what_is_there():
    files = re.findall(r"-r (\S+)", TASK["setup"])
    assert files
    assert all((ROOT / file).is_file() for file in files)
