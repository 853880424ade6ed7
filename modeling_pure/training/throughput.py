"""How fast a run is: tokens per second, share of the device's peak, peak memory, hours left; read at log lines."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Dense bf16 with fp32 accumulation, TFLOP/s, from the makers' data sheets. The first name that occurs in the device's
# own counts, so the longer names come first.
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
    """Peak dense bf16 TFLOP/s of a device by its name, as CUDA gives it; None where it is not in the table."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device_name)), None)


def device_peak(device: torch.device) -> float | None:
    """Peak TFLOP/s of a device; None for one that is not known, a CPU among them."""
    return peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


class Throughput:
    """Speed between log lines, without the time that validation and checkpoints take.

    Args:
        tokens_per_step: of all devices.
        flops_per_token: of training, in the convention of `report.training_flops`.
        peak: TFLOP/s of all devices together; without it there is no MFU.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: int, peak: float | None, device: torch.device) -> None:
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        self.peak, self.device = peak, device
        self.start(0)

    def start(self, step: int) -> None:
        """Begin to measure after `step`."""
        self.step, self.began, self.paused_for = step, time.perf_counter(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens within."""
        began = time.perf_counter()
        yield
        self.paused_for += time.perf_counter() - began

    def measure(self, step: int, max_steps: int) -> dict[str, float]:
        """What a log line after `step` says, and begin anew."""
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
