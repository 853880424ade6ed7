"""SIGTERM and SIGINT end a run after its step, with a checkpoint: preemption, `scancel`, an evicted pod, Ctrl-C."""

import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import RunInterrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_BETWEEN = 2.0


class StopOnSignal(TrainerCallback):
    """Notes a signal, and after the step has a checkpoint saved and the run stopped, on all ranks after the same step.

    A second Ctrl-C, given on its own, ends the process at once. Launchers and schedulers often send the same signal
    twice, so that one within two seconds of the first is taken for the same.
    """

    def __init__(self) -> None:
        self.may_stop: Callable[[], bool] = lambda: True  # after a step; what only some steps allow sets its own
        self.signum = 0  # what all ranks have agreed to stop for
        self.received, self.received_at = 0, 0.0  # by this one, at any moment, also while they agree
        self.handlers: dict[int, Any] = {}
        # The group in which ranks agree; not the one of the gradients, which may be on GPUs.
        self.ranks: dist.ProcessGroup | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen from now on, where Python allows it: a worker of Ray trains in another thread than the main one."""
        if threading.current_thread() is threading.main_thread():
            self.handlers = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        if args.world_size > 1 and self.ranks is None:
            # Its time is up first: NCCL ends a process without a line of ours.
            self.ranks = dist.new_group(backend="gloo", timeout=0.9 * args.ddp_timeout_delta)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop, if any rank has been told to."""
        self.signum = self.received
        if self.ranks is not None:
            agreed = torch.tensor(self.signum)
            dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.ranks)
            self.signum = int(agreed)
        if self.signum and self.may_stop():
            control.should_save = control.should_training_stop = True
        # A checkpoint does not hold the mean that a log line is about to say: let it begin a new one.
        control.should_log |= control.should_save

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen no longer."""
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)

    def raise_if_stopped(self, state: TrainerState) -> None:
        """Raise `RunInterrupted` where a signal ended the run before its last step."""
        if self.signum and state.global_step < state.max_steps:
            name = signal.Signals(self.signum).name
            raise RunInterrupted(
                f"{name}: saved at step {state.global_step:,} and stopped; the same command goes on from there",
                self.signum,
            )

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received == signal.SIGINT == signum and now - self.received_at > SECONDS_BETWEEN:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        if not self.received:
            self.received, self.received_at = signum, now
            again = " (Ctrl-C again: at once, without saving)" if signum == signal.SIGINT else ""
            if signum == signal.SIGINT:
                let_go_of_closed_pipes()
            # Past Python's streams, in whose middle a handler may be called.
            os.write(2, f"{signal.Signals(signum).name}: saving after this step{again}\n".encode())


def let_go_of_closed_pipes() -> None:
    """Write to nowhere where nobody reads any more: Ctrl-C ends the `tee` of `2>&1 | tee log` as well as the run."""
    for stream in (1, 2):
        pipe = select.poll()
        pipe.register(stream, 0)
        if stat.S_ISFIFO(os.fstat(stream).st_mode) and pipe.poll(500):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def leave_signals_to_the_run(worker: int) -> None:
    """Keep a data-loader worker alive when a signal goes to all processes of a run: the last steps need its data.

    Only the run itself, which is the worker's parent, ends it by SIGTERM; who sent one is known to a thread that waits
    for it, and not to a handler.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=leave_when_told_by, args=(os.getppid(),), daemon=True).start()


def leave_when_told_by(sender: int) -> None:
    """End this process at the first SIGTERM of a certain process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != sender:
        pass
    os._exit(0)
