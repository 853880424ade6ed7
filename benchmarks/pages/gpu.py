"""What was measured on a GPU; where there is no file, that it was not."""

from collections.abc import Callable
from pathlib import Path

from .markdown import interval, made_by, percent, read, table

NOT_MEASURED = "**Not measured yet.** `python -m benchmarks.proof {part}` on one GPU fills this place."
GOALS = (
    ("pretraining, 16 x 2,048, tokens/s", "165,000 or more"),
    ("its peak memory, GB", "36 or less"),
    ("rollout against `generate`", "3 times or more"),
    ("GRPO step against stock TRL", "3 times or more"),
)


def files(results: Path, kind: str) -> list[Path]:
    """The results of a kind, one for each machine; tries on a CPU are none."""
    return [file for file in sorted(results.glob(f"{kind}-*.json")) if not file.stem.endswith("-tiny")]


def table_of(kind: str, part: str) -> Callable[[Path], str]:
    """The tables that a benchmark has written itself."""

    def tables(results: Path) -> str:
        found = [file.with_suffix(".md").read_text() for file in files(results, kind)]
        return "\n".join(found) or NOT_MEASURED.format(part=part)

    return tables


def headline(results: Path) -> str:
    """What README says of GPUs."""
    found = [read(file) for file in files(results, "line")]
    said = [
        f"Measured on one {one['device']}: {one['runs']['pretrain']['tokens_per_second']:,.0f} tokens/s in "
        f"pretraining the full model, {one['runs']['pretrain']['peak_memory_gb']:.1f} GB; after ten minutes of it "
        f"{interval(*own(one['evaluations']['pretrain']))} on MedQA dev, after GRPO "
        f"{interval(*own(one['evaluations']['grpo']))}: [docs/results](docs/results/README.md)."
        for one in found
    ]
    return "\n\n".join(said) or (
        "**No figure here was measured on a GPU yet.** `python -m benchmarks.proof line` trains, teaches and asks the "
        "full model on one GPU in commands of less than ten minutes, and writes what it finds to "
        "[docs/results](docs/results/README.md)."
    )


def own(evaluation: dict) -> tuple[float, list[float]]:
    """Accuracy and its interval."""
    return evaluation["accuracy"], evaluation["wilson_interval"]


# ---- targets --------------------------------------------------------------------------------------------------------


def targets(results: Path) -> str:
    """What was aimed at, and what each machine reached."""
    pretraining = {file.stem.removeprefix("speed-pretrain-"): file for file in files(results, "speed-pretrain")}
    grpo = {file.stem.removeprefix("speed-grpo-"): file for file in files(results, "speed-grpo")}
    machines = sorted({*pretraining, *grpo})
    reached = [
        [
            *(best_training(pretraining[name]) if name in pretraining else ("", "")),
            *(grpo_ratios(grpo[name]) if name in grpo else ("", "")),
        ]
        for name in machines
    ]
    rows = [(*goal, *(of_one[i] for of_one in reached)) for i, goal in enumerate(GOALS)]
    if not machines:
        return table(("what", "target on an H200", "measured"), [(*goal, "not yet") for goal in GOALS])
    return table(("what", "target on an H200", *machines), rows)


def best_training(file: Path) -> tuple[str, str]:
    """Tokens per second and memory of our compiled model at 16 rows, with its better attention."""
    rows = [row for row in read(file) if (row["model"], row["rows"]) == ("ours, compiled", 16)]
    best = max(rows, key=lambda row: row.get("tokens_per_second", 0))
    return f"{best.get('tokens_per_second', 0):,}", f"{best.get('peak_memory_gb', 0):.1f}"


def grpo_ratios(file: Path) -> tuple[str, str]:
    """How many times faster rollouts and whole steps are than the peer's."""
    rows = read(file)

    def seconds(what: str, model: str) -> float:
        return next(row["seconds"] for row in rows if (row["what"], row["model"]) == (what, model))

    return tuple(f"{seconds(what, 'stock TRL') / seconds(what, 'ours'):.1f}" for what in ("rollout", "step"))


# ---- the parts of the proof -----------------------------------------------------------------------------------------


def line(results: Path) -> str:
    """Pretraining, GRPO and its twin, with all that has to stand beside the accuracies."""
    found = [line_of(file) for file in files(results, "line")]
    return "\n\n".join(found) or NOT_MEASURED.format(part="line")


def line_of(file: Path) -> str:
    """One machine's."""
    one = read(file)
    data, run, grpo = one["data"], one["runs"]["pretrain"], one["runs"]["grpo"]
    losses = [point["loss"] for point in run["curve"] if "loss" in point]
    validation = [point for point in run["curve"] if "eval_loss" in point][-1]
    rewards = [point["rewards/correct/mean"] for point in grpo["curve"] if "rewards/correct/mean" in point]
    tokens = sum(data["packed_tokens"].values())
    texts = ", ".join(f"{name} {data[name]['megabytes']:g} MB" for name in data["packed_tokens"] if name in data)
    starts = ", ".join(map(str, run["started_from_steps"]))
    about = {
        "machine": made_by(one),
        "text": f"{texts}; {tokens:,} tokens were packed of it, passes completed: "
        + ", ".join(f"{name} {passes}" for name, passes in data["passes_completed"].items()),
        "questions": f"{data['train_questions']:,} to train on, of {data['train_questions_of_the_full_set']:,} that "
        f"MedQA's train split has; {data['dev_questions']:,} asked",
        "pretraining": f"{run['steps']:,} steps, {run['tokens_per_second']:,.0f} tokens/s"
        + (f", MFU {percent(run['mfu'])} (6N + 12LhS)" if "mfu" in run else "")
        + (f", {run['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in run else "")
        + f"; started from step {starts}",
        "training loss": f"{losses[0]:.3f} to {losses[-1]:.3f} nats per token",
        "validation loss": ", ".join(
            f"{name.removeprefix('eval_loss').removeprefix('/') or 'all'} {value:.3f}"
            for name, value in validation.items()
            if name.startswith("eval_loss")
        ),
        "GRPO": f"{grpo['steps']:,} steps; share of sampled answers that were right {rewards[0]:.3f} at first, "
        f"{rewards[-1]:.3f} at last",
        "machine time": f"{sum(stage['seconds'] for stage in one['stages']) / 60:.1f} minutes in "
        f"{len(one['stages'])} commands, {sum(stage['stopped'] for stage in one['stages'])} of them stopped and gone "
        "on with",
    }
    pictures = "\n".join(f"![{name}]({file.stem}-{name}.png)" for name in one["runs"])
    return f"{table(('', one['device']), about.items())}\n\n{evaluations(one['evaluations'])}\n\n{pictures}"


def evaluations(found: dict[str, dict]) -> str:
    """The models' accuracies, and what stands beside the last one's."""
    rows = []
    for name, one in found.items():
        turned = one["permutations"]
        against = next((row for row in one["beside"] if row["name"] == "pretrain"), None)
        change = f"{100 * against['difference']:+.1f} points, p = {against['p_value']:.2g}" if against else ""
        mean = f"{percent(turned['mean_accuracy'])} ± {100 * turned['standard_error']:.1f}"
        rows.append((f"**{name}**", interval(*own(one)), mean, change))
    last = list(found.values())[-1]
    beside = [row for row in last["beside"] if row["name"] not in found and "wilson_interval" in row]
    rows += [(row["name"], interval(*own(row)), "", "") for row in beside]
    head = (
        "who",
        "accuracy (95 % Wilson)",
        "mean over four rotations ± standard error",
        "against `pretrain` (McNemar)",
    )
    return table(head, rows)


def optimizers(results: Path) -> str:
    """AdamW and Muon by learning rate; the last line is Muon for as long as AdamW's best took."""
    parts = []
    for file in files(results, "optimizers"):
        one = read(file)
        rows = [
            (row["run"], f"{row['tokens']:,}", row["seconds"], f"{row['tokens_per_second']:,.0f}", row["eval_loss"])
            for row in one["rows"]
        ]
        head = ("run, learning rate", "tokens", "seconds", "tokens/s", "validation loss")
        parts.append(f"{made_by(one)}\n\n{table(head, rows)}\n\n![curves]({file.stem}-curves.png)")
    return "\n\n".join(parts) or NOT_MEASURED.format(part="optimizers")


def ablation(results: Path) -> str:
    """GRPO's refinements one by one, from the pretrained model."""
    parts = []
    for file in files(results, "ablation"):
        one = read(file)
        rows = [
            (row["arm"], interval(*own(row)), percent(row["permutations"]["mean_accuracy"])) for row in one["rows"]
        ]
        head = ("arm", "accuracy (95 % Wilson)", "mean over four rotations")
        parts.append(f"{made_by(one)}\n\n{table(head, rows)}")
    return "\n\n".join(parts) or NOT_MEASURED.format(part="ablation")
