"""Programs in processes of their own, forked from a server that has made the imports once.

Signals, exit codes, process groups, limits and files are those of real processes. What starts share is the imports,
five seconds of processor time each. Libraries read parts of the environment while they are imported, so a program with
other settings than these starts an interpreter of its own.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = ("train_pretrain", "train_grpo", "eval_medqa")
READ_WHILE_RUNNING = {"CI", "ACCELERATE_USE_CPU"}  # settings that a forked program takes notice of
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([*SCRIPTS, "modeling_pure.commands.pretokenize", "modeling_pure.doctor.command"])


class Program:
    """A started program, with as much of `subprocess.Popen` as tests use. It leads a session of its own.

    Args:
        command: what Python is given: a script, `-m MODULE` or `-c CODE`, and options.
        environment: what differs from that of the tests.
        file_size: bytes that a file may have, as on a disk that is full.
    """

    def __init__(self, *command: object, environment: dict[str, str] | None = None, file_size: int | None = None):
        self.args = list(map(str, command))
        self.folder = tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name, name) for name in ("stdout", "stderr")]
        given = {"CI": "true", **(environment or {})}
        self.process = FORKED.Process(target=enter, args=(self.args, given, self.files, file_size))
        with chdir(ROOT):  # where the server finds the scripts, if it is not running yet
            self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.process.exitcode

    returncode = property(poll)

    def wait(self, timeout: float = 120) -> int:
        """Wait for the end; the exit code."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill_group(signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.process.exitcode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for the end; what was said on stdout and stderr."""
        self.wait(timeout)
        return tuple(file.read_text() if file.exists() else "" for file in self.files)

    def send_signal(self, number: int) -> None:
        """A signal to this process alone."""
        os.kill(self.pid, number)

    def kill_group(self, number: int) -> None:
        """A signal to all processes of the session."""
        os.killpg(self.pid, number)


def enter(command: list[str], environment: dict[str, str], files: list[Path], file_size: int | None) -> None:
    """In the forked process: become the program."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # Linux's default, which the server has changed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.update(environment)
    os.chdir(ROOT)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        exec(command[1], {"__name__": "__main__"})
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


# Locks a folder as a run does, and starts a child as data workers are.
HOLDER = """
import os, sys, time
from pathlib import Path
from modeling_pure.training.launch import lock_folder
lock = lock_folder(Path(sys.argv[1]))
if os.fork():
    print("locked")
time.sleep(120)
"""


def hold(folder: Path) -> Program:
    """A program that has locked a run folder; end its group after use."""
    program = Program("-c", HOLDER, folder)
    while program.poll() is None and not (program.files[0].exists() and program.files[0].read_text()):
        time.sleep(0.01)
    return program


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run(*command: object, expect: int | None = 0, **environment: str) -> subprocess.CompletedProcess:
    """Run a program to its end; fail with its output unless it exits with `expect`."""
    if environment.keys() <= READ_WHILE_RUNNING:
        program = Program(*command, environment=environment)
        stdout, stderr = program.communicate(timeout=600)
        result = subprocess.CompletedProcess(program.args, program.returncode, stdout, stderr)
    else:
        own = {**os.environ, "CI": "true", **environment}
        line = [sys.executable, *map(str, command)]
        result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=own)
    assert expect is None or result.returncode == expect, result.stdout[-3000:] + result.stderr[-3000:]
    return result
