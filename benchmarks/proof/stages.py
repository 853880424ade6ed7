"""Commands one after the other, until the time is up; the same list again goes on where it stopped."""

import json
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

JOURNAL_FILE, LOGS = "stages.jsonl", "logs"
GRACE_SECONDS = 60  # for a script that was told to stop to save what it has; a checkpoint of 4.8 GB takes seconds


class TimeIsUp(Exception):
    """There is more to do than there was time for."""


class StageFailed(Exception):
    """A command ended with another exit code than 0."""


@dataclass(frozen=True)
class Stage:
    """One command.

    Args:
        command: what Python runs, without the interpreter.
        minutes: what a command needs that cannot go on from where it stopped; it is not begun with less time left.
    """

    name: str
    command: tuple[str, ...]
    minutes: float = 0


class Stages:
    """Runs stages, each until it is done, and keeps a journal of every start: `stages.jsonl` in `folder`.

    A stage is done when the same command under the same name has ended with exit code 0.

    Args:
        seconds: after which the running command gets SIGTERM, at which our scripts save and stop.
    """

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.deadline = folder, time.monotonic() + seconds
        (folder / LOGS).mkdir(parents=True, exist_ok=True)

    def run(self, stage: Stage) -> None:
        """Run a stage unless it is done.

        Raises:
            TimeIsUp: it is not done yet; the same call goes on with it.
            StageFailed: with the end of its log.
        """
        command = shlex.join(stage.command)
        if (stage.name, command, 0) in [
            (line["stage"], line["command"], line["exit_code"]) for line in self.journal()
        ]:
            return
        left = self.deadline - time.monotonic()
        if left < max(60 * stage.minutes, 1):
            raise TimeIsUp(f"{stage.name} is next" + (f" and needs {stage.minutes:g} minutes" * (stage.minutes > 0)))
        print(f"{stage.name}: python {command}", flush=True)
        began, log = time.time(), self.folder / LOGS / f"{stage.name}.log"
        code, stopped = run_until(stage.command, log, left)
        seconds = round(time.time() - began, 1)
        with (self.folder / JOURNAL_FILE).open("a") as file:
            line = {"stage": stage.name, "command": command, "began": round(began), "seconds": seconds}
            file.write(json.dumps({**line, "exit_code": code, "stopped": stopped}) + "\n")
        print(f"{stage.name}: {'stopped' if stopped else f'exit code {code}'} after {seconds} s", flush=True)
        if code and stopped:
            raise TimeIsUp(f"{stage.name} goes on")
        if code:
            raise StageFailed(f"{stage.name}: exit code {code}; the end of {log}:\n{last_lines(log)}")

    def journal(self) -> list[dict]:
        """Every start so far: stage, command, when it began, seconds, exit code, whether it was told to stop."""
        file = self.folder / JOURNAL_FILE
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_until(command: tuple[str, ...], log: Path, seconds: float) -> tuple[int, bool]:
    """Run a command for so long at most; returns its exit code, and whether it was told to stop."""
    with log.open("ab") as file:
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT)
    try:
        return process.wait(timeout=seconds), False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    except KeyboardInterrupt:  # the command has got it, too
        process.wait()
        raise
    try:
        return process.wait(timeout=GRACE_SECONDS), True
    except subprocess.TimeoutExpired:  # what is saved whole is kept
        process.kill()
        return process.wait(), True


def last_lines(log: Path, number: int = 25) -> str:
    """The end of a log, of each progress bar its last state alone."""
    lines = [line.rsplit("\r", 1)[-1] for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-number:])
