"""What was measured on a CPU."""

import json
import statistics
from pathlib import Path

from benchmarks.grpo_ablation import COLUMNS, SFT_PROMPTS, SFT_TOKENS

from .markdown import interval, made_by, percent, read, table

BM25 = "BM25 over train questions"


def demo(results: Path) -> str:
    """The demo by seed: accuracy before and after GRPO."""
    result = read(results / "demo.json")
    rows = [
        (
            row["seed"],
            *(interval(row[when]["accuracy"], row[when]["wilson_95"]) for when in ("before", "after")),
            f"{row['became_right']} / {row['became_wrong']}",
            f"p = {row['mcnemar_p']:.1e}",
        )
        for row in result["rows"]
    ]
    head = ("seed", "before GRPO", "after GRPO", "became right / wrong", "exact McNemar")
    asked = result["rows"][0]["after"]["n"]
    said = f"{asked} held-out questions, chance 25 %, 95 % Wilson intervals; {made_by(result)}"
    return f"{table(head, rows)}\n\n{said}."


def demo_beside(results: Path) -> str:
    """What puts the demo's accuracy in proportion."""
    rows = read(results / "demo.json")["rows"]
    looked_up, rotated = (
        ", ".join(percent(value) for value in values)
        for values in (
            sorted({row["beside"][BM25] for row in rows}),
            [row["rotations"]["mean_accuracy"] for row in rows],
        )
    )
    return (
        f"Looking a held-out question up among the train questions with BM25 has {looked_up} right, for the same "
        f"findings come back in other combinations. Over the four rotations of the options the models have {rotated}."
    )


def accuracy_of(results: Path, arm: str) -> float:
    """Mean accuracy of an arm of the demo's ablation over its seeds."""
    rows = read(results / "grpo-ablation.json")
    return statistics.mean(row["accuracy"] for row in rows if row["arm"] == arm)


def demo_baseline(results: Path) -> str:
    """The sentence on cross entropy against GRPO."""
    prompts, tokens, grpo = (
        f"{100 * accuracy_of(results, arm):.0f} %" for arm in (SFT_PROMPTS, SFT_TOKENS, "+ keep-sampling mask")
    )
    return (
        "- **GRPO has a baseline**: `--algorithm sft` teaches the letters of the same prompts. In the demo's world it "
        f"beats GRPO ({prompts} with\n  the same prompts, {tokens} with the same tokens, GRPO {grpo}; means of three "
        "seeds, CPU): [docs/GRPO.md](docs/GRPO.md)."
    )


def demo_ablation(results: Path) -> str:
    """The demo's refinements one by one."""
    rows = read(results / "grpo-ablation.json")
    seeds = sorted({row["seed"] for row in rows})
    lines = []
    for arm in COLUMNS:
        of_arm = [next(row for row in rows if (row["arm"], row["seed"]) == (arm, seed)) for seed in seeds]
        logged = [
            f"{statistics.mean(row[name] for row in of_arm):.3g}" if all(name in row for row in of_arm) else ""
            for name in ("kl", "off_policy/masked_share", "sampling/kept_tokens")
        ]
        cells = [interval(row["accuracy"], row["wilson_95"]) for row in of_arm]
        lines.append((arm, *cells, f"**{percent(accuracy_of(results, arm))}**", *logged))
    head = ("arm", *(f"seed {seed}" for seed in seeds), "mean", "KL", "sequences masked", "tokens kept")
    return table(head, lines)


def peers(results: Path) -> str:
    """The benchmarks that have a peer, a line each."""
    lines = [json.loads(line) for line in (results / "peers-cpu.jsonl").read_text().splitlines()]
    rows = [
        (f"`{one['name']}`", one["unit"], f"**{one['ours']:,}**", f"{one['peer']:,}", one["peer_name"], one["ratio"])
        for one in lines
    ]
    machine = "; ".join(sorted({f"{one['device']}, torch {one['versions']['torch']}" for one in lines}))
    head = ("`python -m benchmarks.`", "what", "ours", "peer", "who the peer is", "ratio")
    return f"{table(head, rows)}\n\n{machine}. The ratio is above 1 where ours is better."
