"""Sampling the completions of groups, ours beside transformers' `generate`, as GRPO's rollouts do it.

    python -m benchmarks.decode [--rounds 3] [--prompt 192] [--completion 64]

4 prompts x 16 completions at temperature 1, top-p 0.95 and top-k 512, float32, all of full length, in turns; medians.
Tokens per second count the completions' tokens over the whole rollout, prompts included; a decode step is what is
left once a rollout of a single token is taken off. Ours also records the keep-sampling mask.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import redirect_stdout
from sys import stderr

from benchmarks.gpu_grpo import OURS, STOCK, Scale, alternate, build_trainer, facts, median_ratio, samplers, save_model

SEQUENCES = 64


def main() -> None:
    """Measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of both, in turns")
    parser.add_argument("--prompt", type=int, default=192, help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=64, help="tokens of a completion")
    options = parser.parse_args()
    scale = Scale("small", options.prompt, options.completion, 16, 2, 32, (SEQUENCES,), 2, bf16=False)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(stderr):
        save_model(folder, scale)
        trainer = build_trainer(OURS, scale, folder)
        whole, first = (
            alternate(samplers(scale, trainer, SEQUENCES, tokens), options.rounds) for tokens in (scale.completion, 1)
        )
    speeds = {model: SEQUENCES * scale.completion / statistics.median(whole[model]) for model in (OURS, STOCK)}
    steps = {
        model: 1000 * (statistics.median(whole[model]) - statistics.median(first[model])) / (scale.completion - 1)
        for model in (OURS, STOCK)
    }
    line = {
        "name": "decode",
        "unit": f"tokens per second, preset {scale.preset}, {SEQUENCES // 16} prompts of {scale.prompt} x 16 "
        f"completions of {scale.completion}",
        "ours": round(speeds[OURS]),
        "peer": round(speeds[STOCK]),
        "peer_name": "transformers' generate",
        "ratio": median_ratio(whole),
        "ours_ms_per_decode_step": round(steps[OURS], 2),
        "peer_ms_per_decode_step": round(steps[STOCK], 2),
        "decode_step_ratio": round(steps[STOCK] / steps[OURS], 2),
        "rounds": options.rounds,
        **{name: value for name, value in facts(scale).items() if name != "command"},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
