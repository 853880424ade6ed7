"""A whole step of GRPO, ours beside `trl.GRPOTrainer`: rollout, rewards, scoring, update.

    python -m benchmarks.grpo_step [--rounds 2]

The same model, prompts, seeds and settings: 2 prompts of 192 tokens x 16 completions of 64 in a step, two updates on
each rollout, KL term and off-policy mask, float32. Each round trains both, one after the other; the two steps on the
first rollout are not counted. Ours keeps the sampling masks besides.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import redirect_stdout
from sys import stderr

from benchmarks.gpu_grpo import OURS, STOCK, facts, median_ratio, save_model, step_seconds
from benchmarks.grpo_score import SMALL


def main() -> None:
    """Measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each")
    rounds = parser.parse_args().rounds
    times = {OURS: [], STOCK: []}
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(stderr):
        save_model(folder, SMALL)
        for _ in range(rounds):
            for model, taken in times.items():
                taken.append(step_seconds(model, SMALL, folder))
    line = {
        "name": "grpo_step",
        "unit": f"seconds of a step, preset {SMALL.preset}, 2 prompts of {SMALL.prompt} x 16 completions of "
        f"{SMALL.completion}",
        "ours": round(statistics.median(times[OURS]), 3),
        "peer": round(statistics.median(times[STOCK]), 3),
        "peer_name": "trl.GRPOTrainer, transformers' generate",
        "ratio": median_ratio(times),
        "rounds": rounds,
        **{name: value for name, value in facts(SMALL).items() if name != "command"},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
