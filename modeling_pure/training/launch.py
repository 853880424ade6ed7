"""The processes of a run: their number, precision and engine, the lock on the run folder, and lost ranks."""

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, get_int_from_env, is_deepspeed_available, parse_flag_from_env
from torch.distributed.distributed_c10d import _get_default_store
from transformers import TrainingArguments

from ..errors import InputError, RankLost, first_line
from .run_folder import folder_of

LOCK_FILE = "_run.lock"  # in the run folder
PRECISIONS = ("no", "bf16")
SIZES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]  # set by launchers
ANSWER_SECONDS = 3.0  # for other ranks to notice a failed connection

# ---- before the run -------------------------------------------------------------------------------------------------


def choose_bf16(stated: bool | None) -> bool:
    """Whether to train in bf16: the option, else the launcher's setting, else whether the GPU supports it.

    Raises `InputError` if `accelerate launch --mixed_precision` is fp16 or fp8, or contradicts the option.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launched not in PRECISIONS:
        raise InputError(f"mixed_precision: accelerate launch sets {launched}; the model trains in bf16 or fp32")
    if launched == "bf16" and stated is False:
        raise InputError("bf16: false contradicts accelerate launch's mixed_precision bf16; leave one of them out")
    if stated is None and launched == "no":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(stated) or launched == "bf16"


def join_processes(args: TrainingArguments) -> None:
    """Start the process group of a run on CPUs.

    Without an accelerator, each process of plain torchrun would be a run of its own unless `use_cpu` is set, and
    transformers ignores `ddp_timeout`.

    Raises `InputError` for DeepSpeed on CPUs, or if the environment lacks the address of the other processes.
    """
    on_cpu = not torch.accelerator.is_available()
    if on_cpu and (args.bf16 or "LOCAL_RANK" in os.environ):
        args.use_cpu = True
    if "deepspeed" in engines(args) and (on_cpu or args.use_cpu or not is_deepspeed_available()):
        raise InputError("deepspeed: needs GPUs and pip install deepspeed; leave it out here")
    if args.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU"):
        PartialState._reset_state()  # as transformers does; an earlier run in this process has set it
        try:
            PartialState(cpu=True, backend=args.ddp_backend, timeout=args.ddp_timeout_delta)
        except ValueError as error:
            raise InputError(f"WORLD_SIZE: {first_line(error)}") from error


def check_processes(args: TrainingArguments) -> None:
    """Raise `InputError` unless all processes that the launcher started train together."""
    started = get_int_from_env(SIZES, 1)
    if started != args.world_size:
        raise InputError(
            f"WORLD_SIZE: the environment states {started} processes, but {args.world_size} would train together; use "
            "torchrun or accelerate launch, which also set RANK, LOCAL_RANK and MASTER_ADDR, or unset it"
        )


def engines(args: TrainingArguments) -> set[str]:
    """The engines other than DDP that options or launcher request."""
    stated = {"deepspeed": args.deepspeed, "fsdp": args.fsdp, "megatron_lm": None}
    return {name for name, given in stated.items() if given or parse_flag_from_env(f"ACCELERATE_USE_{name.upper()}")}


def check_engine(args: TrainingArguments, accelerator: Any) -> None:
    """Raise `InputError` unless accelerate uses the precision and engine that options and launcher request."""
    actual = accelerator.distributed_type.value
    for name in engines(args) - {actual.lower()}:
        raise InputError(
            f"{name}: accelerate uses {actual} on {args.device.type} with {args.world_size} process(es) instead; "
            f"leave {name} out, or start the run by accelerate launch on GPUs"
        )
    if accelerator.mixed_precision != PRECISIONS[bool(args.bf16)]:
        raise InputError(
            f"bf16: {bool(args.bf16)}, but accelerate uses {accelerator.mixed_precision}; make all settings agree on "
            "bf16 or fp32"
        )


def describe_precision(accelerator: Any) -> str:
    """The precision of computation and weights, and the compiler of the whole model if there is one."""
    compiler = accelerator.state.dynamo_plugin.backend.value.lower()
    precision = "bf16 autocast, fp32 weights" if accelerator.mixed_precision == "bf16" else "fp32"
    return precision if compiler == "no" else f"{precision}, model compiled by {compiler}"


def describe_processes(args: TrainingArguments, accelerator: Any) -> str:
    """The device, the number of processes, and the engine if there are several."""
    engine = accelerator.distributed_type.value
    return f"{args.device}, {args.world_size} process(es)" + (f", {engine}" if engine != "NO" else "")


# ---- one run in a folder --------------------------------------------------------------------------------------------


@contextmanager
def run_lock(args: TrainingArguments) -> Iterator[None]:
    """Lock the run folder for this run, and remove it at the end if this run created it and left it empty.

    The first process holds the lock. Data workers do not inherit a `lockf` lock, so that a killed run frees it at
    once; but this process would lose it by opening and closing the file again.

    Raises `InputError`, on all ranks, if another run holds the lock or the folder is not writable.
    """
    folder = Path(folder_of(args))
    existed, lock, refusal = folder.exists(), None, ""
    if args.process_index == 0:
        try:
            lock = lock_folder(folder)
        except InputError as error:
            refusal = str(error)
    (refusal,) = broadcast_object_list([refusal])
    if refusal:
        raise InputError(refusal)
    try:
        yield
    finally:
        if lock:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            lock.close()
            for place in [] if existed else [*sorted(folder.rglob("*"), reverse=True), folder]:
                with suppress(OSError):  # not empty
                    place.rmdir()


def lock_folder(folder: Path) -> IO[str]:
    """Lock a folder and write this process's name to the lock file; closing the file releases the lock.

    Raises `InputError` if another process holds the lock or the folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+")
    except OSError as error:
        raise InputError(f"output_dir: cannot write to '{folder}': {error}") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            with file:
                file.seek(0)
                holder = file.read().strip() or "another process"
            raise InputError(
                f"output_dir: another run is using '{folder}': {holder}; wait until it ends, stop it, or use another "
                "output_dir"
            ) from error
        print(f"output_dir: '{folder}' cannot be locked ({error}); make sure that no other run uses it")
    if not os.fstat(file.fileno()).st_nlink:  # a run that just ended has removed it
        file.close()
        return lock_folder(folder)
    with suppress(OSError):  # on a full disk, the lock holds without a name
        file.truncate(0)
        file.write(f"{this_process()}, since {datetime.now(UTC).isoformat(timespec='seconds')}\n")
        file.flush()
    return file


def this_process() -> str:
    """This process's host and process id."""
    return f"host {socket.gethostname()}, process {os.getpid()}"


# ---- lost ranks -----------------------------------------------------------------------------------------------------


@contextmanager
def naming_lost_ranks(args: TrainingArguments) -> Iterator[None]:
    """Turn a failed connection between ranks into `RankLost`, with one line that names the lost ranks."""
    if args.world_size == 1 or not dist.is_initialized():
        yield
        return
    _get_default_store().set(f"pure/process/{args.process_index}", this_process())
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo raises plain RuntimeErrors
            raise
        lost = lost_ranks(args.process_index, args.world_size)
        raise RankLost(
            f"{' and '.join(lost) or 'a rank'} hangs or has ended (ddp_timeout {args.ddp_timeout:g} s): "
            f"{first_line(error)[:300]}"
        ) from error


def lost_ranks(rank: int, world_size: int) -> list[str]:
    """The ranks that do not report through the group's store, as the others do, that a connection failed."""
    lost = ["rank 0, which holds the store,"]  # unless the store answers

    def ask() -> None:
        with suppress(RuntimeError):
            store = _get_default_store()
            store.set(f"pure/answer/{rank}", "")
            time.sleep(ANSWER_SECONDS)
            silent = [other for other in range(world_size) if not store.check([f"pure/answer/{other}"])]
            places = {other: f"pure/process/{other}" for other in silent}
            known = {other: store.get(place).decode() for other, place in places.items() if store.check([place])}
            lost[:] = [f"rank {other} ({known.get(other, 'not started')})" for other in silent]

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * ANSWER_SECONDS)
    return list(lost)
