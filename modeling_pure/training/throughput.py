"""Computed memory and FLOPs of a run, and its measured speed."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments

from ..configuration_pure import PureConfig
from ..loss_pure import CHUNK_TOKENS

# Dense bf16 with fp32 accumulation, TFLOP/s, from the vendors' data sheets. The first match counts, so longer names
# come first.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "A30": 165.0,
    "A40": 149.7,
    "RTX A6000": 154.8,
    "RTX 6000 Ada": 364.2,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI300X": 1307.0,
}


def peak_tflops(device_name: str) -> float | None:
    """Peak dense bf16 TFLOP/s of a device by its CUDA name; None if it is not in the table."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device_name)), None)


def device_peak(device: torch.device) -> float | None:
    """Peak TFLOP/s of a device; None for a CPU or an unknown GPU."""
    return peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


class Throughput(TrainerCallback):
    """Speed between log lines, without the time of validation and checkpoints.

    Args:
        tokens_per_step: over all devices.
        flops_per_token: from `model_flops`.
        peak: TFLOP/s of all devices together; None = report no MFU.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: int, peak: float | None, device: torch.device) -> None:
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        self.peak, self.device = peak, device
        self.start(0)

    def start(self, step: int) -> None:
        """Start a measurement after `step`."""
        self.step, self.began, self.paused_for = step, time.perf_counter(), 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *others: Any, **kwargs: Any) -> None:
        """Start the first measurement."""
        self.start(state.global_step)

    def cost(self, tokens: int) -> str:
        """Entry of the start-up block: the compute of `tokens` tokens, and the peak that MFU is relative to."""
        petaflops = tokens * self.flops_per_token / 1e15
        compute = f"{petaflops:,.0f} PFLOP" if petaflops >= 10 else f"{petaflops:.3g} PFLOP"
        return compute + (f"; MFU is of {self.peak:,.0f} TFLOP/s (dense bf16)" if self.peak else "")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent within."""
        began = time.perf_counter()
        yield
        self.paused_for += time.perf_counter() - began

    def measure(self, step: int, max_steps: int) -> dict[str, float]:
        """The speed since the last measurement, up to `step`; starts a new one."""
        seconds = time.perf_counter() - self.began - self.paused_for
        speed = (step - self.step) * self.tokens_per_step / seconds
        self.start(step)
        if not speed:
            return {}
        facts = {
            "tokens_per_second": round(speed, 1),
            "hours_left": round((max_steps - step) * self.tokens_per_step / speed / 3600, 2),
        }
        if self.peak:
            facts["mfu"] = round(speed * self.flops_per_token / (self.peak * 1e12), 4)
        if self.device.type == "cuda":
            facts["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)
        return facts


def state_memory(parameters: int) -> str:
    """Memory of the training state per device: fp32 weights, gradients and Adam's two moments, 16 B a parameter."""
    return f"{16 * parameters / 1e9:.2f} GB for weights, gradients and Adam (fp32); activations come on top"


def training_bytes(config: PureConfig, parameters: int, args: TrainingArguments, tokens: int) -> dict[str, int]:
    """Bytes of a micro-batch of `tokens` tokens on each device with compiled layers, by part.

    For each token and layer, the backward pass needs the inputs and outputs of both norms, queries, keys, values, the
    attention output, and three tensors of the MLP's width; with `qk_norm`, queries and keys twice; with checkpointing,
    only the input of each layer, and the rest for one layer at a time. The loss holds a chunk of logits, twice in
    their dtype and twice in float32.
    """
    width = 2 if args.bf16 else 4
    keys = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    normed = config.hidden_size + keys if config.qk_norm else 0
    of_layer = width * tokens * (6 * config.hidden_size + 2 * keys + normed + 3 * config.intermediate_size)
    activations = config.num_hidden_layers * of_layer
    if args.gradient_checkpointing:
        activations = config.num_hidden_layers * width * tokens * config.hidden_size + of_layer
    loss = min(tokens, CHUNK_TOKENS) * config.vocab_size * (2 * width + 8)
    return {"weights, gradients, optimizer": 16 * parameters, "activations": activations, "loss": loss}


def training_memory(config: PureConfig, parameters: int, args: TrainingArguments, tokens: int) -> str:
    """`training_bytes` for people."""
    parts = training_bytes(config, parameters, args, tokens)
    total = sum(parts.values()) / 1e9
    return f"about {total:.1f} GB: " + ", ".join(f"{size / 1e9:.1f} {part}" for part, size in parts.items())


def model_flops(model: PreTrainedModel, length: int) -> int:
    """FLOPs of training per token: 6 x matmul parameters + 12 x layers x hidden x length.

    PaLM's convention (Chowdhery et al. 2022, appendix B), without the input embedding, which is a lookup.
    """
    config = model.config
    matmul = model.num_parameters() - config.vocab_size * config.hidden_size
    return 6 * matmul + 12 * config.num_hidden_layers * config.hidden_size * length
