"""Checks of the machine: packages, GPU, processors, the folder of the run."""

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

from .context import FAIL, PASS, SKIPPED, WARN, Context, Finding

OTHER_FOLDER = "--output_dir FOLDER that you may write to"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
SHARED_MEMORY = Path("/dev/shm")
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
CPU_SPEED = 1e12  # FLOP a second: more than most processors reach
LONG_RUN = 48 * 3600  # seconds; the recipes are for two days
CHECKPOINT_BYTES = 12  # a parameter: its fp32 weight and Adam's two moments
WRITTEN_BYTES = 64 << 20


def check_torch(context: Context) -> Finding:
    """Whether torch is built for the GPU that this machine has."""
    toolkit = torch.version.cuda or torch.version.hip
    found = f"torch {torch.__version__}, {f'CUDA {toolkit}' if toolkit else 'built without CUDA'}"
    if torch.cuda.is_available():
        return Finding(PASS, found)
    if toolkit:
        return Finding(WARN, f"{found}, which finds no GPU", "nvidia-smi has to list one; old drivers hide it")
    if NVIDIA_DRIVER.exists():
        found += ", though there is an NVIDIA driver"
    return Finding(WARN, found, "where there is a GPU, install torch for your CUDA: pytorch.org")


def check_packages(context: Context) -> Finding:
    """Whether Python and the packages for training are there, in the versions that the project states."""
    try:
        wanted = requirements()
    except PackageNotFoundError:
        return Finding(SKIPPED, "neither pyproject.toml nor an installed modeling_pure", "pip install '.[train]'")
    found = {requirement.name: installed(requirement.name) for requirement in wanted}
    faults = [
        f"{one.name} {found[one.name] or 'is missing'}{f', expected {one.specifier}' if str(one.specifier) else ''}"
        for one in wanted
        if not (there := found[one.name]) or not one.specifier.contains(there, prereleases=True)
    ]
    if faults:
        return Finding(FAIL, "; ".join(faults), "pip install -r requirements.txt")
    shown = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "transformers", "trl", "datasets"))
    flash = installed("flash-attn") or "not there, and optional"
    return Finding(PASS, f"{len(found)} in their ranges: {shown}; flash-attn {flash}")


def requirements() -> list[Requirement]:
    """Python and the packages that training needs, with their ranges: of the project's file, or of its metadata.

    Raises:
        PackageNotFoundError: there is neither.
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
    """The version of a package, or of Python; None where it is missing."""
    try:
        return platform.python_version() if name == "python" else version(name)
    except PackageNotFoundError:
        return None


def check_gpu(context: Context) -> Finding:
    """Whether there is a GPU, with the memory that the recipe takes by arithmetic."""
    args, device = context.training, context.training.device
    if device.type != "cuda":
        return without_gpu(context)
    needed, words = context.memory(args, context.data.max_seq_length)
    free, total = torch.cuda.mem_get_info(device)
    precision = "bf16" if args.bf16 else "fp32"
    found = (
        f"{torch.cuda.get_device_name(device)}, {precision}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free; "
        f"the recipe takes {words}"
    )
    if free < context.state_bytes:
        return Finding(FAIL, found, "a GPU with more memory, or end what else runs on it (nvidia-smi)")
    if free < needed:
        rows, passes = context.plan.micro_batch_size, context.plan.accumulation
        halved = f"--per_device_train_batch_size {rows // 2}"
        halved += "" if args.tokens_per_step else f" --gradient_accumulation_steps {2 * passes}"
        return Finding(WARN, found, "--gradient_checkpointing true" + (f", or {halved}" if rows > 1 else ""))
    if not args.bf16:
        return Finding(WARN, found, "bf16 needs an NVIDIA GPU from 2020 on (A100, RTX 30), and no `bf16: false`")
    return Finding(PASS, found)


def without_gpu(context: Context) -> Finding:
    """What it means that there is no GPU: a run small enough for a processor does not need one."""
    on_gpu = copy(context.training)
    on_gpu.bf16 = True
    needed, _ = context.memory(on_gpu, context.data.max_seq_length)
    petaflops = context.tokens * context.flops / 1e15
    work = f"{petaflops:,.0f} PFLOP" if petaflops >= 10 else f"{petaflops:.3g} PFLOP"
    here = context.training.device.type
    found = f"none: the run would be on the {here}; on a GPU in bf16 a pass takes {in_bytes(needed)}"
    if (seconds := petaflops * 1e15 / CPU_SPEED) > LONG_RUN:
        cure = "a machine with a CUDA GPU, or a smaller preset and fewer max_steps"
        return Finding(FAIL, f"{found}; {work} are {seconds / 86400:,.0f} days even at 1 TFLOP/s", cure)
    return Finding(WARN, f"{found}; {work} in all", "none needed if the hours under throughput suit you")


def check_output_dir(context: Context) -> Finding:
    """Whether the run's folder can be written to, and how fast."""
    content, began = os.urandom(WRITTEN_BYTES), time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=existing_folder(context)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(FAIL, f"'{context.training.output_dir}': {error.strerror}", OTHER_FOLDER)
    speed = WRITTEN_BYTES / (time.perf_counter() - began)
    size = CHECKPOINT_BYTES * context.parameters
    return Finding(
        PASS,
        f"'{context.training.output_dir}' takes {speed / 1e6:,.0f} MB/s: {size / speed:,.1f} s for a checkpoint of "
        f"{in_bytes(size)} (arithmetic)",
    )


def check_disk(context: Context) -> Finding:
    """Whether the disk holds the checkpoints that are kept, the best one, and the one that is being written."""
    args = context.training
    try:
        free = shutil.disk_usage(existing_folder(context)).free
    except OSError as error:
        return Finding(FAIL, f"'{args.output_dir}': {error.strerror}", OTHER_FOLDER)
    count = (args.save_total_limit or checkpoints_written(context)) + 2
    needed = count * CHECKPOINT_BYTES * context.parameters
    found = f"{in_bytes(free)} free; {count} checkpoints (kept, best, unfinished) take {in_bytes(needed)} (arithmetic)"
    if free < needed:
        return Finding(FAIL, found, "make room, lower save_total_limit, or --output_dir on another disk")
    return Finding(PASS, found)


def checkpoints_written(context: Context) -> int:
    """How many checkpoints a run writes that deletes none."""
    args = context.training
    return ceil(1 / args.save_steps if args.save_steps < 1 else args.max_steps / args.save_steps)


def existing_folder(context: Context) -> Path:
    """The run's folder, or the nearest above it that is there already: looking leaves nothing behind."""
    folder = Path(context.training.output_dir).absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_monitoring(context: Context) -> Finding:
    """What the recipe reports to; the arguments have been refused if it is not installed."""
    wanted = ", ".join(context.training.report_to or []) or "none"
    return Finding(PASS, f"report_to: {wanted}; metrics.jsonl is always written")


def check_workers(context: Context) -> Finding:
    """Whether data workers have processors, and shared memory to hand their batches over in."""
    args = context.training
    workers = args.dataloader_num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{workers} data worker(s) and the run itself on {cores} core(s)"
    # Token ids and positions of int64, two batches ahead of the one in use.
    shared = 3 * workers * 2 * 8 * context.plan.micro_batch_size * context.data.max_seq_length
    room = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else shared
    if room < shared:
        found = f"{SHARED_MEMORY} has {in_bytes(room)}, the workers' batches take {in_bytes(shared)}"
        return Finding(FAIL, found, "docker run --shm-size=1g, or --dataloader_num_workers 0")
    if workers >= cores:
        return Finding(WARN, found, f"--dataloader_num_workers {max(0, cores - 1)}, or a machine with more cores")
    return Finding(PASS, found)


def in_bytes(size: float) -> str:
    """GB, or MB where they are few."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
