"""What a run prints while it trains: a progress bar in a terminal, and one short line for each line of the log."""

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

# How a metric is printed. The others, in metrics.jsonl and the trackers, would fill the screen.
SHOWN = {
    "loss": "loss {:.3f}",
    "rewards/correct/mean": "right {:.1%}",
    "medqa/parse_rate": "readable {:.1%}",
    "completions/mean_length": "{:.1f} tokens",
    "kl": "KL {:z.4f}",
    "entropy": "entropy {:.3f}",
    "grad_norm": "grad norm {:.2f}",
    "learning_rate": "lr {:.1e}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "peak_memory_gb": "{:.1f} GB",
    "hours_left": "{:.2f} h left",
    "skipped_steps": "{:.0f} steps skipped",
    "eval_loss": "validation loss {:.3f}",
    "eval_rewards/correct/mean": "dev: sampled right {:.1%}",
    "eval_medqa_accuracy": "dev by letter {:.1%}",
    "eval_medqa_text_accuracy": "dev by text {:.1%}",
}
OF_SOURCE = "eval_loss/"
# Of GRPO, whose loss is near 0 in any case.
HIDDEN_BESIDE_REWARDS = ("loss", "eval_loss", "grad_norm", "learning_rate")


class LogLines(ProgressCallback):
    """Trainer's progress bar, without one in a file, and with lines that fit a screen."""

    training_bar: Any  # inferred as None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar at the step that the run resumes from."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            disable = args.disable_tqdm or None  # None: outside of a terminal
            self.training_bar = tqdm(
                total=state.max_steps, initial=state.global_step, dynamic_ncols=True, disable=disable
            )

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Advance the bar of an evaluation, in a terminal."""
        if sys.stderr.isatty() and not args.disable_tqdm:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the step and what `SHOWN` has of a log line."""
        facts = in_words(logs or {})
        if state.is_world_process_zero and facts:
            with tqdm.external_write_mode():
                print(f"{state.global_step}/{state.max_steps}  {'  '.join(facts)}", flush=True)


def in_words(logs: dict[str, Any]) -> list[str]:
    """The facts of a log line that are printed."""
    hidden = HIDDEN_BESIDE_REWARDS if {"reward", "eval_reward"} & {*logs} else ()
    found = {name: value for name, value in logs.items() if value is not None and name not in hidden}
    of_sources = {name.removeprefix(OF_SOURCE): found[name] for name in found if name.startswith(OF_SOURCE)}
    return [
        *(text.format(found[name]) for name, text in SHOWN.items() if name in found),
        *(f"{name} {value:.3f}" for name, value in of_sources.items()),
    ]
