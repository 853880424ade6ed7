"""Scoring completions for GRPO, prompts run once a group, beside stock TRL, which runs every row whole.

    python -m benchmarks.grpo_score [--rounds 5]

What an optimizer step scores: log-probabilities under the old and the reference policy, the loss and its gradient, for
2 prompts of 192 tokens x 16 completions of 64. The same model and settings, float32, in turns; medians. Ours scores
over the keep-sampling mask as well. `whole_rows` is ours with every row run whole: the rest of the ratio is the head,
which TRL runs over the prompts too on a CPU, though not on a GPU.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import redirect_stdout
from sys import stderr

from benchmarks.gpu_grpo import OURS, STOCK, Scale, alternate, build_trainer, facts, median_ratio, save_model, scorer
from modeling_pure.grpo.shared_prefix import add_scoring

WHOLE = "ours, whole rows"
SMALL = Scale("small", 192, 64, 16, 2, 32, (32,), 2, bf16=False)


def main() -> None:
    """Measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of both, in turns")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(stderr):
        save_model(folder, SMALL)
        trainers = {model: build_trainer(model, SMALL, folder) for model in (OURS, STOCK)}
        whole_rows = build_trainer(OURS, SMALL, folder)
        for scored in (whole_rows.model, whole_rows.ref_model):
            add_scoring(scored, whole_rows.temperature, fp32_head=True, share_prefix=False)
        works = {model: scorer(SMALL, trainer) for model, trainer in {**trainers, WHOLE: whole_rows}.items()}
        times = alternate(works, rounds)
    line = {
        "name": "grpo_score",
        "unit": f"seconds, preset {SMALL.preset}, 2 prompts of {SMALL.prompt} x 16 completions of {SMALL.completion}",
        "ours": round(statistics.median(times[OURS]), 3),
        "peer": round(statistics.median(times[STOCK]), 3),
        "peer_name": "trl.GRPOTrainer",
        "ratio": median_ratio(times),
        "whole_rows": round(statistics.median(times[WHOLE]), 3),
        "rounds": rounds,
        **{name: value for name, value in facts(SMALL).items() if name != "command"},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
