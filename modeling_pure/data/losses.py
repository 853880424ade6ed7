"""How much of a source may be lost: a limit in documents that is the same for any number of readers.

Rows are no measure of a loss: one may be a whole file that was not written as lines. So a row counts as one document
for each 4 KB. Readers that share their shards row by row see the same rows, and each stops where one alone would; for
readers of whole shards, the losses of all are added up when the run logs.
"""

from .readers import LOST, Fault
from .source_rows import HELD_OUT
from .states import Losses

FREE_FAULTS = 100
DOCUMENT_BYTES = 4096


def no_losses() -> Losses:
    """The losses at the start of a pass."""
    return {"documents": 0, "unusable": 0, "behind": 0, "broken": 0.0}


def add_row(losses: Losses, value: str | Fault) -> None:
    """Count a row. What is left out on purpose is not lost."""
    size = len(value) if isinstance(value, str) else value.size
    documents = max(1, size // DOCUMENT_BYTES)
    losses["documents"] += documents
    if isinstance(value, str) or value.reason == HELD_OUT.reason:
        return
    losses["behind" if value.reason == LOST.reason else "unusable"] += documents
    losses["broken"] += value.share


def add_losses(all_losses: list[Losses]) -> Losses:
    """The losses of several readers together."""
    return {
        "documents": sum(losses["documents"] for losses in all_losses),
        "unusable": sum(losses["unusable"] for losses in all_losses),
        "behind": sum(losses["behind"] for losses in all_losses),
        "broken": sum(losses["broken"] for losses in all_losses),
    }


def end_shard(losses: Losses) -> None:
    """Count the documents behind a damaged page: a page says little before its whole file has been read."""
    losses["unusable"] += losses["behind"]
    losses["behind"] = 0


def too_many_lost(losses: Losses, max_skipped: float) -> str | None:
    """Return a description of the losses that exceed the limit, or None if they are within it.

    Args:
        max_skipped: the share of the documents that may be lost beyond the first 100, and that of the source which may
            be in files that break off.
    """
    if (lost := losses["unusable"]) > FREE_FAULTS + max_skipped * losses["documents"]:
        return f"{lost:,} of a pass's first {losses['documents']:,} documents cannot be used"
    if losses["broken"] > max_skipped + 1e-9:  # shares are rounded
        return f"files that break off are {losses['broken']:.1%} of the source".replace("%", " %")
    return None
