"""The speed of a whole training step, ours under `PureTrainer` beside HF Llama under the stock Trainer.

    python -m benchmarks.step [--rounds 3]

Same shape, same tokens a step, float32, nothing compiled and nothing run twice; in turns, each round a training of its
own; tokens per second are medians over all rounds. At this size the head is most of the arithmetic, and on a CPU ours
pays there for the chunks of its loss, which save memory and are made to be compiled. Nothing follows from it for a
GPU: `benchmarks.gpu_pretrain` measures that.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import redirect_stdout
from sys import stderr

from benchmarks.gpu_pretrain import Scale, Setup, device_name, train, versions

SMALL = Scale("small", 256, (4,), 4, ("default",), "default", 4 * 256 * 3)


def main() -> None:
    """Measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each")
    rounds = parser.parse_args().rounds
    plain = {"bf16": False}
    ours, peer = [
        Setup(model, "default", 4, {**plain, **more})
        for model, more in (("ours", {"compile_layers": False}), ("HF Llama", {}))
    ]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(stderr):
        for _ in range(rounds):
            for setup in (ours, peer):
                setup.speeds += train(setup, SMALL, folder)
    line = {
        "name": "step",
        "unit": f"tokens per second of training, preset {SMALL.preset}, 4 x {SMALL.row_length} tokens",
        "ours": round(statistics.median(ours.speeds)),
        "peer": round(statistics.median(peer.speeds)),
        "peer_name": "LlamaForCausalLM of the same shape under the stock Trainer",
        "ratio": round(statistics.median(a / b for a, b in zip(ours.speeds, peer.speeds, strict=True)), 3),
        "rounds": rounds,
        "device": device_name(),
        "versions": versions(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
