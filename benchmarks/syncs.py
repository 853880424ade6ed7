"""Device synchronisations in a training step, compared with HF Llama in the stock Trainer.

    python -m benchmarks.syncs

Counts reads of tensors on the host (`item`, `bool`, `nonzero` and others) in an optimizer step of two micro-batches
between log lines. On a GPU each read waits for the device, and `torch.cuda.set_sync_debug_mode` also counts copies
that wait. Nothing is timed.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from sys import stderr

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from benchmarks.measure import DEVICE, print_line
from benchmarks.step import LLAMA, OURS, TINY, build_trainer

READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "unique_consecutive")
FIRST, LAST = 3, 13  # steps between which to count reads


def main() -> None:
    """Count and print one line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with redirect_stdout(stderr):
        ours, peer = reads_per_step(OURS), reads_per_step(LLAMA)
    unit = "host reads of tensors per optimizer step of two micro-batches"
    name = "LlamaForCausalLM under the stock Trainer, default arguments"
    print_line("syncs", unit, ours, peer, name, (peer + 1) / (ours + 1))


class HostReads(TorchDispatchMode):
    """Counts operators whose result the host must wait for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.__name__.split(".")[0] in READS
        return function(*args, **(kwargs or {}))


class CountByStep(TrainerCallback):
    """Records a count after each step, before logging."""

    def __init__(self, count: Callable[[], int]):
        self.count, self.noted = count, {}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Called after the optimizer's step."""
        self.noted[state.global_step] = self.count()


def reads_per_step(model: str) -> float:
    """Reads in one optimizer step. Batches come from a worker process, because its tensors are on the host."""
    reads = HostReads()
    # The counting mode disables compilation; a GPU's warnings do not need it.
    counting = nullcontext() if DEVICE == "cuda" else reads
    settings = {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1, "max_steps": LAST, "bf16": False}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught, counting:
        warnings.simplefilter("always")
        trainer = build_trainer(model, TINY, folder, logging_steps=100, **settings)
        waits = "synchronizing CUDA operation"
        counted = (
            (lambda: sum(waits in str(one.message) for one in caught)) if DEVICE == "cuda" else lambda: reads.count
        )
        noted = CountByStep(counted)
        trainer.add_callback(noted)
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        trainer.train()
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return (noted.noted[LAST] - noted.noted[FIRST]) / (LAST - FIRST)


if __name__ == "__main__":
    main()
