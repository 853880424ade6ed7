"""Plant one fault at a time in a copy of the project, run its room's tests, and show which faults survive.

    python -m tests.mutants [WORD ...]     # only faults whose description or file holds one of these words

Exits with 1 where a fault survives, cannot be planted, or is "found" by a test that fails without it too.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from shutil import copy

from tests.mutants.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
JOBS = os.cpu_count() or 1
SECONDS = 900
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


@dataclass
class Result:
    """The outcome of a fault: the test that found it, or why no test did."""

    fault: Fault
    found_by: str | None
    note: str
    seconds: float


def copy_project(folder: Path) -> Path:
    """A copy of all files that git knows or would add."""
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy(ROOT / name, folder / name)
    who = ["-c", "user.name=mutants", "-c", "user.email=mutants@localhost"]
    for command in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "--message", "copy"]):
        subprocess.run(["git", *command], cwd=folder, check=True)  # runs note their commit
    return folder


def run_tests(project: Path, tests: list[str]) -> subprocess.CompletedProcess:
    """Run tests up to the first that fails; hypothesis draws the same examples each time."""
    options = ["-x", "-p", "no:cacheprovider", "--no-header", "--tb=no", "--hypothesis-seed=0", "-m", "not slow"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def plant(fault: Fault, projects: SimpleQueue) -> Result:
    """Make a fault in a copy that is free, and see whether the tests find it."""
    project, start = projects.get(), time.monotonic()
    file = project / fault.file
    before = file.read_text()
    try:
        if before.count(fault.old) != 1:
            return Result(fault, None, f"{fault.file} holds the line {before.count(fault.old)} times", 0)
        file.write_text(before.replace(fault.old, fault.new))
        done = run_tests(project, fault.tests.split())
        failed = FAILED.search(done.stdout)
        found_by = failed[1] if failed and done.returncode == 1 else None
        note = "" if found_by else f"survived (pytest: {done.returncode})"
    except subprocess.TimeoutExpired:
        found_by, note = None, f"the tests did not end within {SECONDS} s"
    finally:
        file.write_text(before)
        projects.put(project)
    return Result(fault, found_by, note, time.monotonic() - start)


def main() -> int:
    """Plant the faults, check the tests that found them without, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="plant only faults whose description or file holds one of these")
    words = parser.parse_args().words
    faults = [fault for fault in FAULTS if not words or any(word in f"{fault.file} {fault.what}" for word in words)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(JOBS) as pool:
        projects: SimpleQueue = SimpleQueue()
        for number in range(JOBS):
            projects.put(copy_project(Path(folder, str(number))))
        results = []
        for result in pool.map(lambda fault: plant(fault, projects), faults):
            results.append(result)
            end = f"found by {result.found_by}" if result.found_by else result.note.upper()
            print(f"{result.seconds:4.0f} s  {result.fault.file}: {result.fault.what}\n        {end}", flush=True)
        finders = sorted({result.found_by for result in results if result.found_by})
        sound = run_tests(projects.get(), finders) if finders else None
    survivors = sum(result.found_by is None for result in results)
    print(f"{len(results) - survivors} of {len(results)} faults found by {len(finders)} tests")
    if sound and sound.returncode:
        print(f"without a fault these tests do not pass:\n{sound.stdout[-2000:]}")
    return int(bool(survivors or (sound and sound.returncode)))


if __name__ == "__main__":
    sys.exit(main())
