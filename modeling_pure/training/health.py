"""What keeps a bad batch from ruining a run: steps skipped on the device, a stop after several, a loss watch."""

import json
import math
import statistics
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from ..errors import RunStopped

SPIKE_WINDOW = 50  # log lines
SPIKE_DEVIATIONS = 6.0
SPIKE_LEAST = 0.2  # nats: below that it is not worth a word, however quiet the curve was


class NotFinite(RunStopped):
    """The loss or a gradient was not finite in too many steps in a row."""


class NonFiniteGuard:
    """Skips the optimizer steps whose loss or gradient is not finite; fused AdamW and Muon decide on the device.

    A loss that is not finite makes the gradient NaN, so that the gradient's norm says everything, and on all ranks.
    `found_inf`, the flag of `torch.amp.GradScaler`, then keeps the optimizer from changing anything: fused AdamW reads
    it in its kernel, and `MuonWithAdamW` puts the weights back. The learning rate and the data move on. For any other
    optimizer the host waits for the norm, and takes the gradients away.

    Args:
        max_steps: so many such steps in a row stop the run, at the next log line.
        steps_kept: how many steps' batches to remember, to say which rows were concerned.
    """

    def __init__(self, max_steps: int, steps_kept: int, device: torch.device) -> None:
        self.max_steps = max_steps
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.longest, self.last_of_longest, self.skipped, self.finite_losses = torch.zeros(
            4, dtype=torch.int64, device=device
        ).unbind()
        self.losses = 0
        self.batches: deque[tuple[int, list[dict[str, Any]]]] = deque(maxlen=steps_kept)

    def poison(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss, with a gradient that is NaN throughout where it is not finite."""
        return loss * torch.where(torch.isfinite(loss), 1.0, torch.nan)

    def count_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of a micro-batch for the log: 0, and not counted, where it is not finite."""
        finite = torch.isfinite(loss)
        self.finite_losses += finite
        self.losses += 1
        return torch.where(finite, loss, 0.0)

    def check(self, grad_norm: torch.Tensor, optimizer: Any, step: int) -> torch.Tensor:
        """Tell the optimizer whether to skip this step; returns the norm as a plain tensor."""
        grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        bad = ~torch.isfinite(grad_norm)
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # torch's mark of those that read the flag
            optimizer.found_inf = bad.float()
        elif isinstance(optimizer, torch.optim.Optimizer) and bad:  # DeepSpeed's is none, and steps by itself
            optimizer.zero_grad()
        self.in_a_row = torch.where(bad, self.in_a_row + 1, 0)
        self.last_of_longest = torch.where(self.in_a_row > self.longest, step, self.last_of_longest)
        self.longest = torch.maximum(self.longest, self.in_a_row)
        self.skipped += bad
        return grad_norm

    def read(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, int, range]:
        """Since the last call: share of losses that were finite, steps skipped, and the longest row of these.

        The one place where the host waits for the device, when a log line is due and it waits anyway. `reduce` adds up
        over the ranks: each has losses of its own, whereas the norm of the gradient is one for all.
        """
        losses = torch.full_like(self.finite_losses, self.losses)
        finite, losses = reduce(torch.stack([self.finite_losses, losses])).tolist()
        skipped, longest, last = torch.stack([self.skipped, self.longest, self.last_of_longest]).tolist()
        self.losses = 0
        self.finite_losses.zero_(), self.skipped.zero_(), self.longest.copy_(self.in_a_row)
        return finite / max(1, losses), skipped, range(last - longest + 1, last + 1)

    def write_batches(self, folder: Path, rank: int, steps: range, tokenizer: PreTrainedTokenizerBase) -> Path:
        """Write the rows of some steps to a file of the run's folder, each as a line of JSON."""
        file = folder / f"not-finite-rank-{rank}.jsonl"
        with file.open("w") as lines:
            for step, batches in self.batches:
                for batch in batches if step in steps else []:
                    for source, ids in zip(batch["source"], batch["input_ids"].tolist(), strict=True):
                        line = {"step": step, "source": source, "input_ids": ids, "text": tokenizer.decode(ids)}
                        lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        return file


def loss_spike(loss: float, earlier: list[float]) -> float | None:
    """By how many nats a logged loss stands out above the earlier ones; None where it does not.

    It stands out when it lies more than six standard deviations above the median of the last 50, the deviation being
    estimated from the median absolute deviation, which one earlier spike does not move.
    """
    window = [value for value in earlier[-SPIKE_WINDOW:] if math.isfinite(value)]
    if len(window) < 10:
        return None
    median = statistics.median(window)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in window)
    above = loss - median
    return above if above > max(SPIKE_DEVIATIONS * deviation, SPIKE_LEAST) else None
