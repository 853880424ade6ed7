"""SIGTERM and SIGINT (preemption, `scancel`, eviction, Ctrl-C) end a run after its step, with a checkpoint."""

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
    """After a signal, saves a checkpoint and stops the run, on all ranks after the same step.

    A second Ctrl-C ends the process at once, unless it follows within two seconds: launchers and schedulers often send
    a signal twice.
    """

    def __init__(self) -> None:
        self.may_stop: Callable[[], bool] = lambda: True  # whether the run may stop after this step
        self.signum = 0  # the signal that all ranks have agreed on
        self.received, self.received_at = 0, 0.0  # by this rank, set asynchronously
        self.handlers: dict[int, Any] = {}
        self.ranks: dist.ProcessGroup | None = None  # on CPUs; that of the gradients may be on GPUs

    def on_train_begin(self, args: TrainingArguments, *others: Any, **kwargs: Any) -> None:
        """Install the handlers in the main thread; a Ray worker trains in another one."""
        if threading.current_thread() is threading.main_thread():
            self.handlers = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        if args.world_size > 1 and self.ranks is None:
            # Times out before NCCL does, which would end the process without our message.
            self.ranks = dist.new_group(backend="gloo", timeout=0.9 * args.ddp_timeout_delta)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop if any rank received a signal."""
        self.signum = self.received
        if self.ranks is not None:
            agreed = torch.tensor(self.signum)
            dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.ranks)
            self.signum = int(agreed)
        if self.signum and self.may_stop():
            control.should_save = control.should_training_stop = True
        # The running mean of the loss is not part of a checkpoint: log it, which starts a new one.
        control.should_log |= control.should_save

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Restore the handlers."""
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)

    def raise_if_stopped(self, state: TrainerState) -> None:
        """Raise `RunInterrupted` if a signal ended the run before its last step."""
        if self.signum and state.global_step < state.max_steps:
            name = signal.Signals(self.signum).name
            raise RunInterrupted(
                f"{name}: saved a checkpoint at step {state.global_step:,} and stopped; the same command resumes",
                self.signum,
            )

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received == signal.SIGINT == signum and now - self.received_at > SECONDS_BETWEEN:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        if not self.received:
            self.received, self.received_at = signum, now
            again = ""
            if signum == signal.SIGINT:
                again = " (press Ctrl-C again to stop without saving)"
                replace_closed_pipes()
            # Python's streams are not reentrant.
            os.write(2, f"{signal.Signals(signum).name}: saving after this step{again}\n".encode())


def replace_closed_pipes() -> None:
    """Redirect closed output pipes to /dev/null: Ctrl-C also ends the `tee` of `2>&1 | tee log`."""
    for stream in (1, 2):
        pipe = select.poll()
        pipe.register(stream, 0)
        if stat.S_ISFIFO(os.fstat(stream).st_mode) and pipe.poll(500):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def ignore_signals_to_group(worker: int) -> None:
    """Keep a data-loader worker alive when its whole process group receives a signal: the last step needs its data.

    Only a SIGTERM from its parent ends it. A thread waits for the signal because a handler would not learn the sender.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        parent = os.getppid()

        def exit_with_parent() -> None:
            while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
                pass
            os._exit(0)

        threading.Thread(target=exit_with_parent, daemon=True).start()
