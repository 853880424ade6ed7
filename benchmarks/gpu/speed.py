"""Training speed of the full model: tokens per second, MFU, peak memory.

MFU counts 6N + 12LhS FLOPs per token, N without the input embedding; `mfu_causal` counts 6N + 6LhS, without the masked
half of causal attention. Both are shares of the dense bf16 peak.
"""

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import step
from benchmarks.measure import DEVICE, peak_memory, reset_peak_memory
from modeling_pure.training.kernels import describe_attention
from modeling_pure.training.throughput import device_peak, model_flops

from .runner import Setting


def scale_of(setting: Setting) -> step.Scale:
    """The size of the measured training step."""
    return step.TINY if setting.tiny else step.Scale()


def training(setting: Setting, model: str = step.OURS, **arguments: Any) -> Iterator[dict]:
    """The row of one configuration; ours is compiled layer by layer."""
    scale, compiled = scale_of(setting), {"compile_layers": True} if model == step.OURS else {}
    reset_peak_memory()
    trainer, taken = step.train(model, scale, **compiled, **arguments)
    if getattr(trainer, "micro_batch_size", scale.sequences) < scale.sequences:
        raise torch.OutOfMemoryError(f"{scale.sequences} sequences do not fit")
    median, tokens = statistics.median(taken), scale.sequences * scale.length
    row = {
        "what": model,
        **arguments,
        "attention": describe_attention(trainer.model, trainer.args.device, bf16=True),
        "sequences": scale.sequences,
        "length": scale.length,
        "steps": len(taken),
        "tokens_per_second": round(tokens / median),
        "ms_per_step": round(1e3 * median, 2),
        "ms_slowest": round(1e3 * max(taken), 2),
        **peak_memory(),
    }
    if peak := device_peak(torch.device(DEVICE)):
        flops = model_flops(trainer.model, scale.length)
        half = 6 * scale.config.num_hidden_layers * scale.config.hidden_size * scale.length
        for name, count in (("mfu", flops), ("mfu_causal", flops - half)):
            row[name] = round(count * tokens / median / peak / 1e12, 4)
    yield row
