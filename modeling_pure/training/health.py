"""Protection from bad batches: non-finite steps are skipped, repeated ones stop the run, spikes are reported."""

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

SPIKE_WINDOW = 50  # log lines
SPIKE_DEVIATIONS = 6.0
SPIKE_LEAST = 0.2  # nats; smaller jumps never count


class NonFiniteGuard:
    """Skips optimizer steps whose loss or gradient is not finite, on the device for fused AdamW and Muon.

    A non-finite loss makes the gradient NaN, so that the gradient norm decides, on all ranks. `found_inf`, the flag of
    `torch.amp.GradScaler`, then turns the step into a no-op: fused AdamW reads it in its kernel, and `MuonWithAdamW`
    restores the weights. The learning rate and the data advance. For any other optimizer the host waits for the norm
    and drops the gradients.

    Args:
        steps_kept: number of steps whose batches to keep, for `write_batches`.
    """

    def __init__(self, steps_kept: int, device: torch.device) -> None:
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.longest, self.last_of_longest, self.skipped, self.finite_losses = torch.zeros(
            4, dtype=torch.int64, device=device
        ).unbind()
        self.losses = 0
        self.batches: deque[tuple[int, list[dict[str, Any]]]] = deque(maxlen=steps_kept)

    def poison(self, loss: torch.Tensor) -> torch.Tensor:
        """Make every gradient NaN if the loss is not finite."""
        return loss * torch.where(torch.isfinite(loss), 1.0, torch.nan)

    def count_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """A micro-batch's loss for the log; 0 and uncounted if it is not finite."""
        finite = torch.isfinite(loss)
        self.finite_losses += finite
        self.losses += 1
        return torch.where(finite, loss, 0.0)

    def check(self, grad_norm: torch.Tensor, optimizer: Any, step: int) -> torch.Tensor:
        """Make the optimizer skip this step if its norm is not finite; returns the norm as a plain tensor."""
        grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        bad = ~torch.isfinite(grad_norm)
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # torch's mark of optimizers that read the flag
            optimizer.found_inf = bad.float()
        elif isinstance(optimizer, torch.optim.Optimizer) and bad:  # not DeepSpeed's, which steps by itself
            optimizer.zero_grad()
        self.in_a_row = torch.where(bad, self.in_a_row + 1, 0)
        self.last_of_longest = torch.where(self.in_a_row > self.longest, step, self.last_of_longest)
        self.longest = torch.maximum(self.longest, self.in_a_row)
        self.skipped += bad
        return grad_norm

    def read(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, int, range]:
        """Since the last call: share of finite losses, number of skipped steps, longest run of skipped steps.

        The only synchronisation with the device, at a log line, which synchronises anyway. `reduce` sums over ranks:
        they have different losses, but the same gradient norm.
        """
        losses = torch.full_like(self.finite_losses, self.losses)
        finite, losses = reduce(torch.stack([self.finite_losses, losses])).tolist()
        skipped, longest, last = torch.stack([self.skipped, self.longest, self.last_of_longest]).tolist()
        self.losses = 0
        self.finite_losses.zero_(), self.skipped.zero_(), self.longest.copy_(self.in_a_row)
        return finite / max(1, losses), skipped, range(last - longest + 1, last + 1)

    def write_batches(self, folder: Path, rank: int, steps: range, tokenizer: PreTrainedTokenizerBase) -> Path:
        """Write the sequences of some steps to a file in the run folder, as JSON lines."""
        file = folder / f"not-finite-rank-{rank}.jsonl"
        with file.open("w") as lines:
            for step, batches in self.batches:
                for batch in batches if step in steps else []:
                    for source, ids in zip(batch["source"], batch["input_ids"].tolist(), strict=True):
                        line = {"step": step, "source": source, "input_ids": ids, "text": tokenizer.decode(ids)}
                        lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        return file


def loss_spike(loss: float, earlier: list[float]) -> float | None:
    """How many nats a logged loss lies above the recent median; None if it is not a spike.

    A spike lies more than six standard deviations above the median of the last 50 losses. The deviation is estimated
    from the median absolute deviation, which earlier spikes hardly affect.
    """
    window = [value for value in earlier[-SPIKE_WINDOW:] if math.isfinite(value)]
    if len(window) < 10:
        return None
    median = statistics.median(window)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in window)
    above = loss - median
    return above if above > max(SPIKE_DEVIATIONS * deviation, SPIKE_LEAST) else None
