"""Runs steps in sequence, each in its own process, and keeps all results even if a step crashes.

A step is a generator of rows. Its process appends each row to a file; this process follows the file, updates
`gpu.json`, and kills a step that takes too long. Processes are forked after the imports and before CUDA starts, so
that a step starts at once and leaves nothing on the GPU.
"""

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from modeling_pure.atomic import write_atomically

GRACE_SECONDS = 5  # between SIGTERM and SIGKILL
LOG_LINES, LOG_WIDTH = 30, 300  # of a step in `gpu.json`
LOG_BYTES = 500_000  # of a step in `log.txt`
OK, FAILED, SKIPPED, KILLED = "ok", "failed", "skipped", "killed"
received: list[int] = []  # signals; an exception in their handler could be lost during a fork


@dataclass(frozen=True)
class Step:
    """One measurement.

    Args:
        part: its part on the command line.
        function: `module:name` of a generator of rows; it is called with a `Setting` and `options`.
        seconds: expected duration; the step is skipped if less time is left.
        cap: seconds after which its process is killed.
    """

    name: str
    part: str
    function: str
    seconds: float
    cap: float
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Setting:
    """Arguments of every step: whether to use the tiny sizes, and the input, output and scratch folders."""

    tiny: bool
    data: Path
    out: Path
    work: Path


class Results:
    """`gpu.json`, rewritten atomically on every change.

    Args:
        facts: versions, device, commit and command.
    """

    def __init__(self, file: Path, facts: dict[str, Any]):
        self.file, self.content = file, {**facts, "steps": []}
        self.write()

    def add(self, name: str, **changes: Any) -> dict[str, Any]:
        """Append a step; change the returned entry and call `write`."""
        entry = {"name": name, "status": SKIPPED, "seconds": 0.0, "error": None, "log_tail": [], "rows": [], **changes}
        self.content["steps"].append(entry)
        self.write()
        return entry

    def write(self) -> None:
        """Write all results so far."""
        write_atomically(self.file, json.dumps(self.content, indent=1) + "\n")


def run_steps(steps: list[Step], setting: Setting, results: Results, deadline: float) -> None:
    """Run all steps that fit before `deadline` (`time.monotonic`); stop if one of the first two of all fails.

    SIGTERM and SIGINT stop the running step, and then the command.
    """
    start_method = "fork"
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: received.append(number))
    for number, step in enumerate(steps):
        left = deadline - time.monotonic()
        if left < step.seconds:
            results.add(step.name, error=f"needs {step.seconds:g} s, {max(0, left):.0f} s are left")
            continue
        entry = results.add(step.name, status=KILLED)
        run_step(step, setting, results, entry, min(step.cap, left), start_method)
        if number == 0 and entry["status"] == FAILED and "CUDA" in entry["error"]:
            # An import initialized CUDA in this process; spawned processes can still use it.
            start_method = "spawn"
            entry = results.add(f"{step.name}, spawned", status=KILLED)
            run_step(step, setting, results, entry, min(step.cap, deadline - time.monotonic()), start_method)
        if received:
            sys.exit(128 + received[0])
        if entry["status"] != OK and number < 2 and step.part == "checks":
            return


def run_step(step: Step, setting: Setting, results: Results, entry: dict, cap: float, start_method: str) -> None:
    """Run one step for at most `cap` seconds and fill its entry."""
    name = entry["name"].replace(" ", "-").replace(",", "").replace(":", "")
    rows, log = setting.work / f"{name}.jsonl", setting.work / f"{name}.log"
    rows.touch()
    log.touch()
    process = multiprocessing.get_context(start_method).Process(target=run_here, args=(step, setting, rows, log, cap))
    begin = time.monotonic()
    process.start()
    while process.exitcode is None and time.monotonic() < begin + cap and not received:
        process.join(0.1)
        follow(rows, entry, results)
    in_time = process.exitcode is not None
    end(process)
    follow(rows, entry, results)
    entry |= {"seconds": round(time.monotonic() - begin, 1), "log_tail": last_lines(log)}
    with (setting.out / "log.txt").open("a") as file:
        file.write(f"==== {entry['name']}\n{log.read_text(errors='replace')[-LOG_BYTES:]}\n")
    if not in_time:
        entry["error"] = "the command was stopped" if received else f"did not end within {cap:.0f} s"
    elif process.exitcode < 0:
        entry["error"] = f"ended by {signal.Signals(-process.exitcode).name}"
    else:
        entry["status"] = FAILED if process.exitcode else OK
        if process.exitcode and not entry["error"]:
            entry["error"] = f"exit code {process.exitcode}"
    results.write()


def follow(rows: Path, entry: dict, results: Results) -> None:
    """Read the rows that the step has written since the last call."""
    lines = [json.loads(line) for line in rows.read_text().splitlines(keepends=True) if line.endswith("\n")]
    found = [line["row"] for line in lines if "row" in line]
    errors = [line["error"] for line in lines if "error" in line]
    if len(found) > len(entry["rows"]) or errors:
        entry |= {"rows": found, "error": errors[-1] if errors else entry["error"]}
        results.write()


def end(process: multiprocessing.Process) -> None:
    """Kill a step's process, if it still runs, and all processes that it has started."""
    for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 2 * GRACE_SECONDS)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):  # none left, or no process group yet
            if process.is_alive():
                os.kill(process.pid, number)
        process.join(patience)


def run_here(step: Step, setting: Setting, rows: Path, log: Path, cap: float) -> None:
    """In the step's process: run it with its output in `log` and its rows in `rows`."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    faulthandler.dump_traceback_later(max(0.5, cap - 0.5), file=sys.stderr)  # shows where it hangs before it is killed
    code = 0
    with rows.open("a", buffering=1) as file:
        try:
            module, _, name = step.function.partition(":")
            for row in getattr(import_module(module), name)(setting, **dict(step.options)):
                file.write(json.dumps({"row": row}) + "\n")
        except BaseException as error:
            traceback.print_exc()
            message = str(error).strip().splitlines()
            file.write(json.dumps({"error": f"{type(error).__name__}: {message[0] if message else ''}"[:500]}) + "\n")
            code = 1
    sys.stdout.flush()
    os._exit(code)  # skips the clean-up of libraries, which may hang


def last_lines(log: Path) -> list[str]:
    """The end of a log, with only the last state of progress bars."""
    lines = [line.rsplit("\r", 1)[-1][:LOG_WIDTH] for line in log.read_text(errors="replace").splitlines()]
    return [line for line in lines if line.strip()][-LOG_LINES:]
