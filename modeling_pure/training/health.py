"""Protection from bad batches: steps skipped on the device, a stop after several, a watch on the loss."""

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
SPIKE_LEAST = 0.2  # nats; less is no spike, however quiet the curve was


class NotFinite(RunStopped):
    """The loss or a gradient was not finite in too many consecutive steps."""


class NonFiniteGuard:
    """Skips the optimizer steps whose loss or gradient is not finite; fused AdamW and Muon decide on the device.

    A loss that is not finite makes the gradient NaN, so the norm of the gradient decides, on all ranks. `found_inf`,
    the flag of `torch.amp.GradScaler`, then keeps the optimizer from changing anything: fused AdamW reads it in its
    kernel, and `MuonWithAdamW` restores the weights. The learning rate and the data advance. For any other optimizer
    the host waits for the norm and drops the gradients.

    Args:
        max_steps: stop the run after this many consecutive skipped steps, at the next log line.
        steps_kept: how many steps' batches to keep, to write down those that were not finite.
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
        """The loss, whose gradient is NaN throughout if the loss is not finite."""
        return loss * torch.where(torch.isfinite(loss), 1.0, torch.nan)

    def count_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of a micro-batch for the log: 0, and not counted, if it is not finite."""
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
        """Since the last call: share of finite losses, number of skipped steps, and the longest run of these.

        The only place where the host waits for the device, when a log line is due and it waits anyway. `reduce` adds
        up over the ranks, each of which has losses of its own; the norm of the gradient is the same on all.
        """
        losses = torch.full_like(self.finite_losses, self.losses)
        finite, losses = reduce(torch.stack([self.finite_losses, losses])).tolist()
        skipped, longest, last = torch.stack([self.skipped, self.longest, self.last_of_longest]).tolist()
        self.losses = 0
        self.finite_losses.zero_(), self.skipped.zero_(), self.longest.copy_(self.in_a_row)
        return finite / max(1, losses), skipped, range(last - longest + 1, last + 1)

    def write_batches(self, folder: Path, rank: int, steps: range, tokenizer: PreTrainedTokenizerBase) -> Path:
        """Write the sequences of some steps to a file of the run's folder, each as a line of JSON."""
        file = folder / f"not-finite-rank-{rank}.jsonl"
        with file.open("w") as lines:
            for step, batches in self.batches:
                for batch in batches if step in steps else []:
                    for source, ids in zip(batch["source"], batch["input_ids"].tolist(), strict=True):
                        line = {"step": step, "source": source, "input_ids": ids, "text": tokenizer.decode(ids)}
                        lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        return file


def loss_spike(loss: float, earlier: list[float]) -> float | None:
    """By how many nats a logged loss lies above the earlier ones; None if it is no spike.

    A spike lies more than six standard deviations above the median of the last 50. The deviation is estimated from the
    median absolute deviation, which an earlier spike does not move.
    """
    window = [value for value in earlier[-SPIKE_WINDOW:] if math.isfinite(value)]
    if len(window) < 10:
        return None
    median = statistics.median(window)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in window)
    above = loss - median
    return above if above > max(SPIKE_DEVIATIONS * deviation, SPIKE_LEAST) else None
