"""Shared by the benchmarks: device, timing, alternating measurements, and the JSON line."""

import gc
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Work = Callable[[], object]


def device_name() -> str:
    """The name of the GPU, or of the CPU with its threads."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def versions(*packages: str) -> dict[str, str]:
    """The versions of installed packages."""
    found = {}
    for name in packages:
        try:
            found[name] = torch.__version__ if name == "torch" else version(name)  # with torch's CUDA build
        except PackageNotFoundError:
            continue
    return found


def now() -> float:
    """Seconds on a clock, after the device has finished."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Work) -> float:
    """Wall time of a call, until the device has finished."""
    begin = now()
    work()
    return now() - begin


def alternate(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of alternating calls by name, after one call of each to warm up."""
    for work in works.values():
        work()
    turns = [{name: seconds(work) for name, work in works.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in works}


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)


def reset_peak_memory() -> None:
    """Reset the peak that `peak_memory` returns."""
    if DEVICE == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float]:
    """Peak GB of tensors since `reset_peak_memory`; empty on a CPU."""
    return {"peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if DEVICE == "cuda" else {}


def print_line(
    name: str,
    unit: str,
    ours: float,
    peer: float,
    peer_name: str,
    ratio: float,
    packages: tuple[str, ...] = ("torch", "transformers"),
    **more: Any,
) -> None:
    """Print a benchmark's result as one line of JSON; a ratio above 1 means that ours is better."""
    result = {"name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio}
    print(json.dumps({**result, **more, "device": device_name(), "versions": versions(*packages)}))
