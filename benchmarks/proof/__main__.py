"""One part of the proof on one GPU, as far as the minutes reach; the same command again goes on.

    python -m benchmarks.proof line [--data data] [--minutes 9.5]
    python -m benchmarks.proof line --tiny      # the same commands on a CPU, with a tiny model and a small world

The parts, each complete in itself: `checks` (tests that need a GPU, first on a new machine), `line` (rows, 401M
parameters pretrained for ten minutes, GRPO, its SFT twin, every dev question to all three, with rotations and
baselines), `speed` (beside HF Llama and stock TRL, and a profile), `optimizers` (AdamW and Muon at three learning
rates), `exactness` (a resumed bf16 run), `ablation` (GRPO's refinements one by one).

When the minutes are over, the running script is told to stop, saves, and the exit code is 75; the same command goes on
from there, so that a machine lent by the minute will do. What a part has found is written to --results once the part
is done, as JSON with pictures, and `python -m benchmarks.pages` puts it on the pages.
Research only, not for clinical use.
"""

import argparse
import sys
from pathlib import Path

import torch

from modeling_pure.errors import InputError, run_script

from .collect import collect
from .data import ProofData, write_small_data
from .parts import PARTS, TINY, Proof, Scale
from .stages import GRACE_SECONDS, StageFailed, Stages, TimeIsUp

MORE_TO_DO = 75  # EX_TEMPFAIL: try again


def main() -> int:
    """Run the stages of a part, then write down what it has found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.proof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS, help="which part")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with pretrain/, medqa/ and tokenizer/")
    parser.add_argument("--out", type=Path, default=Path("runs/proof"), help="folder for runs and checkpoints")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder for what was found")
    parser.add_argument("--minutes", type=float, default=9.5, help="of this command, saving at the end included")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to try the commands")
    options = parser.parse_args()
    seconds = 60 * options.minutes - GRACE_SECONDS
    if seconds <= 0:
        raise InputError(f"minutes: expected more than the {GRACE_SECONDS} s that saving may take")
    if not options.tiny and not torch.cuda.is_available():
        raise InputError("there is no GPU here; --tiny runs on a CPU")
    data = write_small_data(options.out / "world") if options.tiny else ProofData(options.data)
    data.check()
    proof = Proof(data, options.out, options.results, TINY if options.tiny else Scale())
    stages = Stages(options.out, seconds)
    options.results.mkdir(parents=True, exist_ok=True)
    names = set()
    try:
        for stage in PARTS[options.part](proof):
            stages.run(stage)
            names.add(stage.name)
    except TimeIsUp as more:
        print(f"not done yet: {more}; give the same command again")
        return MORE_TO_DO
    except StageFailed as error:
        print(error, file=sys.stderr)
        return 1
    of_part = [start for start in stages.journal() if start["stage"] in names]
    for file in collect(options.part, proof, of_part):
        print(f"written: {file}")
    return 0


if __name__ == "__main__":
    run_script(main, "benchmarks.proof")
