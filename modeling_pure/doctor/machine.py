"""Checks of the machine: packages, GPU, processors, and the folder of the run."""

import os
import platform
import shutil
import tempfile
import time
import tomllib
from copy import copy
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from math import ceil
from pathlib import Path

import torch
from packaging.requirements import Requirement
from rich.filesize import decimal

from ..options import check_output_folder
from .context import FAIL, WARN, Context, Finding, Skip

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
SHARED_MEMORY = Path("/dev/shm")
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
CPU_SPEED = 1e12  # FLOP/s: more than most processors reach
LONG_RUN = 48 * 3600  # seconds; the recipes are for two days
CHECKPOINT_BYTES = 12  # per parameter: its fp32 weight and Adam's two moments
WRITTEN_BYTES = 64 << 20


def check_torch(context: Context) -> Finding | str:
    """Whether torch is built for this machine's GPU."""
    toolkit = torch.version.cuda or torch.version.hip
    found = f"torch {torch.__version__}, {f'CUDA {toolkit}' if toolkit else 'built without CUDA'}"
    if torch.cuda.is_available():
        return found
    if toolkit:
        return Finding(WARN, f"{found}, finds no GPU", "nvidia-smi must list it; update an old driver")
    if NVIDIA_DRIVER.exists():
        found += ", but an NVIDIA driver is installed"
    return Finding(WARN, found, "if the machine has a GPU, install torch for its CUDA version: pytorch.org")


def check_packages(context: Context) -> Finding | str:
    """Whether Python and the packages for training are installed in the required versions."""
    try:
        wanted = requirements()
    except PackageNotFoundError as error:
        raise Skip("modeling_pure is not installed, and has no pyproject.toml", "pip install '.[train]'") from error
    found = {one.name: installed(one.name) for one in wanted}
    faults = [
        f"{one.name} {there or 'is missing'}" + (f", expected {one.specifier}" if str(one.specifier) else "")
        for one in wanted
        if not (there := found[one.name]) or not one.specifier.contains(there, prereleases=True)
    ]
    if faults:
        return Finding(FAIL, "; ".join(faults), "pip install -r requirements.txt")
    shown = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "transformers", "trl", "datasets"))
    flash = installed("flash-attn") or "missing (optional)"
    return f"{len(found)} in the required versions: {shown}; flash-attn {flash}"


def requirements() -> list[Requirement]:
    """Python and the packages for training, from pyproject.toml or the metadata of the installed package.

    Raises:
        PackageNotFoundError: neither exists.
    """
    if PROJECT.exists():
        project = tomllib.loads(PROJECT.read_text())["project"]
        lines = [*project["dependencies"], *project["optional-dependencies"]["train"]]
        python = project["requires-python"]
    else:
        lines, python = requires("modeling_pure") or [], metadata("modeling_pure")["Requires-Python"]
    wanted = map(Requirement, [f"python{python}", *lines])
    return [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": "train"})]


def installed(name: str) -> str | None:
    """The version of a package, or of Python; None if it is missing."""
    try:
        return platform.python_version() if name == "python" else version(name)
    except PackageNotFoundError:
        return None


def check_gpu(context: Context) -> Finding | str:
    """Whether there is a GPU with the memory that the recipe takes by estimate."""
    args, device = context.training, context.training.device
    if device.type != "cuda":
        return check_without_gpu(context)
    batch_size, length = context.size
    needed, words = context.memory(args, length)
    free, total = torch.cuda.mem_get_info(device)
    found = f"{torch.cuda.get_device_name(device)}, {'bf16' if args.bf16 else 'fp32'}, "
    found += f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free; the recipe takes {words}"
    if free < 16 * context.parameters:  # weights, gradients and Adam's two moments in fp32
        return Finding(FAIL, found, "use a GPU with more memory, or stop other programs on it (nvidia-smi)")
    if free < needed:
        halved = f"--per_device_train_batch_size {batch_size // 2}"
        doubled = f" --gradient_accumulation_steps {2 * context.plan.accumulation}"
        smaller = f", or {halved}{'' if args.tokens_per_step else doubled}" if batch_size > 1 else ""
        return Finding(WARN, found, f"--gradient_checkpointing true{smaller}")
    if not args.bf16:
        return Finding(WARN, found, "bf16 needs an NVIDIA GPU of 2020 or later (A100, RTX 30), and no `bf16: false`")
    return found


def check_without_gpu(context: Context) -> Finding:
    """Whether the run is small enough for a CPU."""
    on_gpu = copy(context.training)
    on_gpu.bf16 = True
    needed, _ = context.memory(on_gpu, context.data.max_seq_length)
    flops = context.tokens * context.flops
    work = f"{flops / 1e15:,.0f} PFLOP" if flops >= 1e16 else f"{flops / 1e15:.3g} PFLOP"
    found = f"none: the run would use the {context.training.device.type}; "
    found += f"on a GPU in bf16 a micro-batch takes {decimal(needed)}; the run takes {work}"
    if (seconds := flops / CPU_SPEED) > LONG_RUN:
        found += f", {seconds / 86400:,.0f} days even at 1 TFLOP/s"
        return Finding(FAIL, found, "use a machine with a CUDA GPU, or a smaller preset and fewer max_steps")
    return Finding(WARN, found, "none needed if the time shown at throughput is acceptable")


def check_output_dir(context: Context) -> str:
    """Whether the run's folder is writable, and how fast."""
    check_output_folder("output_dir", context.training.output_dir)
    content, began = os.urandom(WRITTEN_BYTES), time.perf_counter()
    with tempfile.TemporaryFile(dir=existing_folder(context)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    speed = WRITTEN_BYTES / (time.perf_counter() - began)
    size = CHECKPOINT_BYTES * context.parameters
    checkpoint = f"{size / speed:,.1f} s for a checkpoint of {decimal(size)} (estimate)"
    return f"'{context.training.output_dir}' writes {speed / 1e6:,.0f} MB/s: {checkpoint}"


def check_disk(context: Context) -> Finding | str:
    """Whether the disk can hold the retained checkpoints, the best one, and an unfinished one."""
    args = context.training
    free = shutil.disk_usage(existing_folder(context)).free
    written = ceil(1 / args.save_steps if args.save_steps < 1 else args.max_steps / args.save_steps)
    count = (args.save_total_limit or written) + 2
    needed = count * CHECKPOINT_BYTES * context.parameters
    found = f"{decimal(free)} free; {count} checkpoints (retained, best, unfinished) take {decimal(needed)} (estimate)"
    if free < needed:
        return Finding(FAIL, found, "free some space, lower save_total_limit, or set --output_dir to another disk")
    return found


def existing_folder(context: Context) -> Path:
    """The run's folder or its nearest existing parent, so that checks create no folder."""
    folder = Path(context.training.output_dir).absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_monitoring(context: Context) -> str:
    """The trackers of the recipe; a tracker that is not installed is an input error."""
    return f"report_to: {', '.join(context.training.report_to or []) or 'none'}; metrics.jsonl is always written"


def check_workers(context: Context) -> Finding | str:
    """Whether data workers have CPU cores, and shared memory for their batches."""
    workers, (batch_size, length) = context.training.dataloader_num_workers, context.size
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{workers} data worker(s) and the main process on {cores} core(s)"
    # int64 token ids and positions of three batches per worker: the current one and two prefetched ones.
    shared = 3 * workers * 2 * 8 * batch_size * length
    room = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else shared
    if room < shared:
        found = f"{SHARED_MEMORY} has {decimal(room)}, the workers' batches take {decimal(shared)}"
        return Finding(FAIL, found, "docker run --shm-size=1g, or --dataloader_num_workers 0")
    if workers >= cores:
        return Finding(WARN, found, f"--dataloader_num_workers {max(0, cores - 1)}, or a machine with more cores")
    return found
