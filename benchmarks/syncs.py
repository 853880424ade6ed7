"""What makes the host wait for the device in a training step, and what attention is called with, beside HF Llama.

    python -m benchmarks.syncs

Counts the reads of tensors (`item`, `bool`, `nonzero` and the like) in an optimizer step of two micro-batches between
log lines, ours under `PureTrainer` and HF Llama's of the same shape under the stock Trainer with its defaults. On a
GPU each read waits until the device has done all it was given; there copies that wait are counted too, by
`torch.cuda.set_sync_debug_mode`. Then the arguments that reach scaled dot-product attention when layers are compiled
one by one, and when the whole model is: with a mask it cannot take its flash kernel. Nothing here is timed.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from sys import stderr

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from benchmarks.gpu_pretrain import DEVICE, TINY, device_name, pure_trainer, stock_trainer, versions

READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "unique_consecutive")
FIRST, LAST = 3, 13  # steps between which reads are counted


def main() -> None:
    """Count, print one line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with redirect_stdout(stderr):
        ours, peer = reads_per_step(pure_trainer), reads_per_step(stock_trainer)
        attention = {
            f"{model}, {what} compiled": attention_arguments(build, what)
            for model, build in (("ours", pure_trainer), ("peer", stock_trainer))
            for what in ("layers", "model")
        }
    line = {
        "name": "syncs",
        "unit": "host reads of tensors per optimizer step of two micro-batches",
        "ours": ours,
        "peer": peer,
        "peer_name": "LlamaForCausalLM under the stock Trainer, default arguments",
        "ratio": (peer + 1) / (ours + 1),
        "attention": attention,
        "device": device_name(),
        "versions": versions(),
    }
    print(json.dumps(line))


class HostReads(TorchDispatchMode):
    """Counts operators whose result the host waits for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.__name__.split(".")[0] in READS
        return function(*args, **(kwargs or {}))


class Between(TrainerCallback):
    """Notes the count after two steps."""

    def __init__(self, count: Callable[[], int]):
        self.count, self.noted = count, {}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """After the optimizer's step, before anything is logged."""
        self.noted[state.global_step] = self.count()


def reads_per_step(build: Callable) -> float:
    """Reads in one optimizer step. Batches come from a worker process, whose tensors are on the host anyway."""
    reads = HostReads()
    # Under the counting mode nothing would be compiled; a GPU's own warnings need no mode.
    counting = nullcontext() if DEVICE == "cuda" else reads
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as waits, counting:
        warnings.simplefilter("always")
        trainer = build(arguments(folder), TINY, False)
        between = Between(lambda: len(waiting(waits)) if DEVICE == "cuda" else reads.count)
        trainer.add_callback(between)
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        trainer.train()
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return (between.noted[LAST] - between.noted[FIRST]) / (LAST - FIRST)


def waiting(caught: list[warnings.WarningMessage]) -> list:
    """The warnings of CUDA operations that waited."""
    return [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]


def arguments(folder: str) -> dict:
    """Of a short run that logs nothing before its end."""
    return {
        "output_dir": folder,
        "max_steps": LAST,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 100,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 1,
        "use_cpu": DEVICE == "cpu",
    }


def attention_arguments(build: Callable, what: str) -> dict:
    """What scaled dot-product attention is given in a compiled training step: all layers alike, or this fails."""
    calls: list[dict] = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        for node in graph.graph.nodes:
            if node.target is F.scaled_dot_product_attention:
                given = {name: node.kwargs.get(name) for name in ("attn_mask", "is_causal", "enable_gqa")}
                calls.append({**given, "attn_mask": "none" if given["attn_mask"] is None else "4D"})
        return graph

    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as folder:
        plain = {"compile_layers": False} if build is pure_trainer else {}
        model = build({**arguments(folder), **plain}, TINY, False).model.train()
    model.config.use_cache = False
    for region in model.model.layers if what == "layers" else [model]:
        region.compile(backend=backend)
    ids = torch.randint(1, 100, (2, 32), device=model.device)
    model(input_ids=ids, labels=ids).loss.backward()
    if not calls or any(call != calls[0] for call in calls):
        raise RuntimeError(f"layers differ in what they ask for: {calls}")
    return calls[0]


if __name__ == "__main__":
    main()
