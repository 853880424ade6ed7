"""What a run writes beside its checkpoints: every logged number, one JSON line each."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..atomic import write_atomically

METRICS_FILE = "metrics.jsonl"


class MetricsFile(TrainerCallback):
    """Appends each log line to `metrics.jsonl` in the run's folder; a resumed run drops lines it writes again."""

    def __init__(self, output_dir: str) -> None:
        self.path = Path(output_dir) / METRICS_FILE

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget lines beyond the step the run goes on from."""
        if state.is_world_process_zero:
            kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step > 0]
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line."""
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **as_json(logs or {})}) + "\n")


def as_json(logs: dict[str, Any]) -> dict[str, Any]:
    """Log values with null in the place of a number that JSON does not have."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in logs.items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut off while it was written is left out."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
