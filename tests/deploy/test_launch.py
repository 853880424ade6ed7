"""deploy/launch.py is torchrun with the exit codes of the script, and time to save."""

import os
import signal
import subprocess
import sys
import time

import pytest

from modeling_pure.errors import EXIT_CODES
from tests.deploy.conftest import ROOT
from tests.processes import free_port

# Exits with the given code on its last rank; or waits for SIGTERM and exits with 143 a moment later.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
folder, code, rank = Path(sys.argv[1]), sys.argv[2], os.environ["RANK"]
def save(signum, frame):
    time.sleep(1)
    (folder / f"saved-{rank}").touch()
    sys.exit(128 + signum)
signal.signal(signal.SIGTERM, save)
(folder / f"world-{rank}").write_text(os.environ["WORLD_SIZE"])
if code != "wait" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL) if code == "killed" else sys.exit(int(code))
if code != "0":
    time.sleep(120)
"""


def launch(folder, code) -> subprocess.Popen:
    (folder / "program.py").write_text(PROGRAM)
    options = ["--nproc_per_node=2", f"--master_port={free_port()}", folder / "program.py", folder, code]
    return subprocess.Popen([sys.executable, "deploy/launch.py", *map(str, options)], cwd=ROOT)


@pytest.mark.parametrize(
    ("code", "expect"), [("0", 0), *((str(code), code) for code in EXIT_CODES.values()), ("killed", 137)]
)
def test_the_exit_code_is_that_of_the_rank_that_failed(tmp_path, code, expect):
    assert launch(tmp_path, code).wait(timeout=60) == expect
    assert (tmp_path / "world-1").read_text() == "2"


def test_sigterm_reaches_the_ranks_which_may_save(tmp_path):
    process = launch(tmp_path, "wait")
    while process.poll() is None and len(list(tmp_path.glob("world-*"))) < 2:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert len(list(tmp_path.glob("saved-*"))) == 2
