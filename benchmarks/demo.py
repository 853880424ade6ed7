"""The demo for several seeds: what README says of it.

    python -m benchmarks.demo [--seeds 0 1 2] [--out docs/results]

Runs `python -m modeling_pure.demo` once for each seed, each in the place of the one before, and notes accuracies
before and after GRPO with what stands beside them. A quarter of an hour on two cores. They are the same on a machine
that does other things meanwhile.
"""

import argparse
import json
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.memory import device_name
from modeling_pure.atomic import write_atomically
from modeling_pure.demo.__main__ import RUNS
from modeling_pure.medqa.compare import compare_evaluations
from modeling_pure.medqa.results import read_evaluation
from modeling_pure.training.callbacks import METRICS_FILE, read_metrics


def main() -> None:
    """Run all seeds, write the rows, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights, order and sampling")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder for the rows")
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        subprocess.run([sys.executable, "-m", "modeling_pure.demo", "--seed", str(seed)], stdout=sys.stderr)
        rows.append({"seed": seed, **row()})  # exit code 1 says that a seed has not learned, which is a result too
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": "python -m benchmarks.demo",
        "device": device_name(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }
    write_atomically(options.out / "demo.json", json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    before, after = (statistics.mean(row[when]["accuracy"] for row in rows) for when in ("before", "after"))
    print(json.dumps({"name": "demo", "unit": "held-out accuracy, mean", "ours": after, "peer": before, **facts}))


def row() -> dict:
    """What the demo's folder says."""
    before, after = (read_evaluation("demo", str(RUNS / f"eval_{when}")) for when in ("before", "after"))
    (mcnemar,) = compare_evaluations(before, [after])
    lines = read_metrics(RUNS / "pretrain" / METRICS_FILE)
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return {
        "losses": [losses[0], losses[-1]],
        "before": accuracy(before.results),
        "after": accuracy(after.results),
        "became_right": mcnemar["only_second"],
        "became_wrong": mcnemar["only_first"],
        "mcnemar_p": mcnemar["p_value"],
        "rotations": after.results["metrics"]["permutations"],
        "beside": {comparison["name"]: comparison["accuracy"] for comparison in after.results["comparisons"]},
    }


def accuracy(results: dict) -> dict:
    """Accuracy, its 95 % Wilson interval, and of how many questions."""
    metrics = results["metrics"]
    return {"accuracy": metrics["accuracy"], "wilson_95": metrics["wilson_interval"], "n": metrics["n"]}


if __name__ == "__main__":
    main()
