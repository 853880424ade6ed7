"""The loss with and without normalised queries and keys after equal tokens, at several learning rates.

    python -m benchmarks.qk_norm --questions data/medqa/train.jsonl --dev data/medqa/dev.jsonl --text data/pretrain

Pretrains the model of `benchmarks.formats` on its mixture for each seed and learning rate, with `qk_norm` and without.
Only these differ. The same command continues: `--work` keeps finished runs. Prints a table of validation losses in
nats per token, then a line of JSON.
"""

import itertools
import math
import statistics
from pathlib import Path

from benchmarks.formats import RECIPE, parse_arguments, run, write_recipe, write_tokenizer
from benchmarks.measure import print_line
from modeling_pure.console import print_table
from modeling_pure.errors import EXIT_CODES, RunStopped
from modeling_pure.training.run_folder import METRICS_FILE, read_metrics

RATES = (2e-3, 6e-3, 2e-2)
ARMS = {"without": False, "qk_norm": True}


def main() -> None:
    """Train every model, and print the table and one line."""
    args = parse_arguments(str(__doc__), "runs/qk_norm")
    write_tokenizer(Path(args.work) / "tokenizer", args)
    losses: dict[tuple[str, float], list[float]] = {(arm, rate): [] for arm in ARMS for rate in RATES}
    for seed, (arm, rate) in itertools.product(range(args.seeds), losses):
        name = f"{arm}-{rate:g}-{seed}"
        shape = RECIPE["model_overrides"] | {"qk_norm": ARMS[arm]}
        schedule = {"learning_rate": rate, "lr_scheduler_kwargs": {"min_lr": rate / 10}}
        recipe = write_recipe(args, name, {"letter": 1.0}, seed=seed, model_overrides=shape, **schedule)
        command = ("train_pretrain.py", "--config", str(recipe), "--eval_steps", str(args.steps))
        run(*command, expected=(0, EXIT_CODES[RunStopped]))
        losses[arm, rate].append(last_loss(Path(args.work) / name))
    rows = [[arm, *(cell(losses[arm, rate]) for rate in RATES)] for arm in ARMS]
    print_table(f"Validation loss, {args.seeds} seeds", ["", *(f"rate {rate:g}" for rate in RATES)], rows)
    ours, peer = (min(statistics.mean(losses[arm, rate]) for rate in RATES) for arm in ("qk_norm", "without"))
    print_line(
        "qk_norm",
        f"validation loss at the best of the rates, {args.steps * RECIPE['tokens_per_step']:,} tokens",
        round(ours, 4),
        round(peer, 4),
        "without normalised queries and keys",
        round(peer / ours, 4),
        losses={f"{arm}, rate {rate:g}": [round(loss, 4) for loss in found] for (arm, rate), found in losses.items()},
    )


def last_loss(folder: Path) -> float:
    """The loss of a run's last validation; infinite if none is finite."""
    found = [line["eval_loss"] for line in read_metrics(folder / METRICS_FILE) if "eval_loss" in line]
    return found[-1] if found and math.isfinite(found[-1]) else math.inf


def cell(values: list[float]) -> str:
    """The mean over seeds, and the value of each."""
    return f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main()
