"""Correctness, speed and a short whole run on one GPU, within a number of seconds.

    python -m benchmarks.gpu --seconds 430 --out results-1 checks speed grpo
    python -m benchmarks.gpu --seconds 250 --out results-2 line profile
    python -m benchmarks.gpu --tiny --seconds 300 --out DIR checks speed grpo line profile    # on a CPU
    python -m benchmarks.gpu prepare offline    # gather files for a machine without a network

    checks    kernels, CUDA graphs, skipped steps, resuming and out-of-memory against their references
    speed     training of the full model, compared with HF Llama in the stock Trainer: tokens/s, MFU, peak memory
    grpo      rollouts, scoring and whole steps, compared with stock TRL
    line      pretraining, MedQA dev questions, GRPO, the same questions, on the files from `prepare`
    profile   kernels by kind, idle share and the longest kernels of pretraining, a rollout and scoring

Every step runs in its own process with a time limit, and the others run even if it crashes. A step that cannot finish
in the remaining seconds is skipped. If one of the first two checks fails, the command stops at once. Every new row
rewrites `gpu.json` in the output folder: status, seconds, error, last log lines and rows of every step. Exit code 0:
no step failed; 1: a step failed or was killed; 2: bad input. Research only, not for clinical use.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import psutil

from benchmarks.measure import DEVICE, device_name, versions
from modeling_pure.errors import InputError, run_script
from modeling_pure.training.run_folder import git_commit

from .prepare import prepare
from .runner import FAILED, KILLED, Results, Setting, run_steps
from .steps import MODULES, STEPS

PACKAGES = ("torch", "triton", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "numpy")


def main() -> int:
    """Run the steps of the chosen parts; returns the exit code."""
    if sys.argv[1:2] == ["prepare"]:
        return prepare(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=MODULES, metavar="PART", help=", ".join(MODULES))
    parser.add_argument("--seconds", type=float, required=True, help="for the whole command")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json, log.txt and traces")
    parser.add_argument("--data", type=Path, default=Path("offline"), help="folder from `prepare`")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, also on a CPU, to try the code")
    options = parser.parse_args()
    started = time.monotonic() - (time.time() - psutil.Process().create_time())  # includes imports
    if not options.tiny and DEVICE != "cuda":
        raise InputError("no GPU found; --tiny runs on a CPU")
    if (options.out / "gpu.json").exists():
        raise InputError(f"out: '{options.out}' holds the results of another run")
    if "line" in options.parts and not options.tiny and not (options.data / "rows").is_dir():
        raise InputError(f"data: '{options.data}' has no rows; `python -m benchmarks.gpu prepare` gathers them")
    steps = [step for step in STEPS if step.part in options.parts]
    if options.tiny:  # on any CPU, however slow
        steps = [replace(step, seconds=1, cap=120) for step in steps]
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "gpu.json", facts())
    for part in options.parts:
        try:
            import_module(MODULES[part])
        except Exception as error:  # only its steps fail
            print(f"{MODULES[part]}: {type(error).__name__}: {error}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as work:
        setting = Setting(options.tiny, options.data, options.out, Path(work))
        run_steps(steps, setting, results, started + options.seconds)
    entries = results.content["steps"]
    print(f"{results.content['device']}: {options.out / 'gpu.json'}")
    for entry in entries:
        for number, line in enumerate(headlines(entry)):
            begin = f"{entry['name']:30} {entry['status']:8} {entry['seconds']:6.1f} s" if number == 0 else ""
            print(f"{begin:48}  {line[:110]}")
    return int(any(entry["status"] in (FAILED, KILLED) for entry in entries) or len(entries) < len(steps))


def facts() -> dict:
    """The context of the figures."""
    return {
        "versions": {"python": sys.version.split()[0], **versions(*PACKAGES)},
        "device": device_name() if DEVICE == "cpu" else gpu_and_driver(),
        "commit": git_commit(),
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
    }


def gpu_and_driver() -> str:
    """The first GPU and its driver, without starting CUDA in this process."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "a GPU that nvidia-smi does not name"


def headlines(entry: dict) -> list[str]:
    """Lines of the table: the error and the rows of a step."""
    lines = [entry["error"]] if entry["error"] else []
    for row in entry["rows"]:
        numbers = [f"{key} {value}" for key, value in row.items() if isinstance(value, int | float)]
        lines.append(f"{row.get('what', '')}: {', '.join(numbers)}")
    return lines or [""]


if __name__ == "__main__":
    run_script(main, "benchmarks.gpu")
