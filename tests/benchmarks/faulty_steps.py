"""Steps that end in every way there is, run as `benchmarks.gpu` runs its own.

python -m tests.benchmarks.faulty_steps OUT [FIRST]      writes OUT/gpu.json; FIRST replaces the first step
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu import runner
from benchmarks.gpu.runner import Results, Setting, Step, run_steps


def good(setting: Setting, rows: int = 2) -> Iterator[dict]:
    yield from ({"what": f"row {number}"} for number in range(rows))


def raises(setting: Setting) -> Iterator[dict]:
    yield {"what": "before"}
    raise ValueError("the reason\nand more")


def leaves(setting: Setting) -> Iterator[dict]:
    yield {"what": "before"}
    os._exit(3)


def hangs(setting: Setting, deaf: bool = False) -> Iterator[dict]:
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield {"what": "before", "pid": os.getpid()}
    time.sleep(600)


def is_killed(setting: Setting) -> Iterator[dict]:
    yield {"what": "before"}
    os.kill(os.getpid(), signal.SIGKILL)


def runs_out_of_memory(setting: Setting) -> Iterator[dict]:
    yield {"what": "before"}
    raise torch.OutOfMemoryError("tried to allocate 2 TiB")


def starts_a_process(setting: Setting) -> Iterator[dict]:
    yield {"what": "process", "pid": subprocess.Popen(["sleep", "600"]).pid}


def needs_a_process_of_its_own(setting: Setting) -> Iterator[dict]:
    """As where something has started CUDA before: a forked process cannot use it."""
    yield {"what": "start"}
    if sys.modules["__main__"].__name__ != "__mp_main__":  # forked
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")


def reads_its_own_row(setting: Setting) -> Iterator[dict]:
    """Ends once its first row is in the file of results, while it still runs."""
    yield {"what": "a row to be seen"}
    while "a row to be seen" not in (setting.out / "gpu.json").read_text():
        time.sleep(0.05)
    yield {"what": "seen"}


def step(name: str, function: str, part: str = "speed", seconds: float = 0, cap: float = 30, **options) -> Step:
    return Step(name, part, f"tests.benchmarks.faulty_steps:{function}", seconds, cap, tuple(options.items()))


STEPS = [
    step("first", "good", part="checks"),
    step("second", "good", part="checks"),
    step("raises", "raises"),
    step("leaves", "leaves"),
    step("hangs", "hangs", cap=1),
    step("deaf", "hangs", cap=1, deaf=True),
    step("is killed", "is_killed"),
    step("out of memory", "runs_out_of_memory"),
    Step("no module", "speed", "tests.no_such_module:anything", 0, 30),
    step("too long", "good", seconds=1e6),
    step("starts a process", "starts_a_process"),
    step("reads its own row", "reads_its_own_row"),
    step("last", "good", rows=3),
]

if __name__ == "__main__":
    runner.GRACE_SECONDS = 0.5
    out = Path(sys.argv[1])
    (out / "work").mkdir()
    steps = STEPS
    if start := sys.argv[2:]:
        steps = [step("first", *start, part="checks"), *STEPS[1:3]]
    results = Results(out / "gpu.json", {"device": "none"})
    run_steps(steps, Setting(True, out, out, out / "work"), results, time.monotonic() + 120)
