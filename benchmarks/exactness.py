"""Whether a resumed bf16 run is the run it would have been, beside the noise that a device has without resuming.

    python -m benchmarks.exactness [--out docs/results]
    python -m benchmarks.exactness --tiny --out /tmp/tiny      # the same code on a CPU, in a minute

`train_pretrain.py` trains the full model as a command, bf16 and on a GPU with compiled layers, 20 steps of four rows
of generated text: once whole, once whole again (what differs there is the device's noise), and once resumed, by the
same command in a folder that has nothing but the first run's checkpoint of step 10. Then all three once more with
`--full_determinism true`. Compared with the first run are the losses that are logged after step 10 and the final
weights, bit by bit. `--tiny` makes two runs, whole and resumed, with that option.

The option is transformers': torch.use_deterministic_algorithms(True) and a workspace of cuBLAS that does not depend on
what else runs. By torch's sources attention then is the flash kernel in its deterministic form, for cuDNN's is not
deterministic; that is not seen here, but an operator that has no such form would end the run, and the row says so.
All runs share the compiler's cache, as those of one machine do; on another one kernels may be chosen otherwise. The
rows are written after each comparison as `exactness-DEVICE.json` with a table beside it.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import safe_open

from benchmarks.gpu_pretrain import versions, write_rows
from benchmarks.memory import DEVICE, device_name
from benchmarks.text import write_sources, write_tokenizer
from modeling_pure.training.callbacks import METRICS_FILE, read_metrics
from modeling_pure.training.run_folder import LAUNCHES_FILE

STEPS, CHECKPOINT = 20, 10
WORDS = 2000  # of the tokenizer; the model has room for more


@dataclass(frozen=True)
class Scale:
    """What is trained, which runs beside the whole one, and whether without `full_determinism` as well."""

    preset: str = "medium-large"
    row_length: int = 2048
    rows: int = 4
    runs: tuple[str, ...] = ("again", "resumed")
    deterministic: tuple[bool, ...] = (False, True)


TINY = Scale("tiny", 64, 4, ("resumed",), (True,))
COLUMNS = (
    *("full_determinism", "run", "from_step", "equal", "largest_loss_difference", "weights_that_differ"),
    *("largest_weight_difference", "tokens_per_second"),
)


class RunFailed(Exception):
    """A training has ended with an error."""


def main() -> None:
    """Train, compare, write the rows, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder for the rows and the table")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, also on a CPU, to try the code")
    options = parser.parse_args()
    if not options.tiny and DEVICE != "cuda":
        parser.error("there is no GPU here; --tiny runs on the CPU")
    scale = TINY if options.tiny else Scale()
    name = "tiny" if options.tiny else torch.cuda.get_device_name().lower().replace(" ", "-")
    command = "python -m benchmarks.exactness" + (" --tiny" if options.tiny else "")
    facts = {"device": device_name(), "versions": versions(), "command": command}
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder), scale)
        for deterministic in scale.deterministic:
            for row in compared_runs(recipe, scale.runs, deterministic):
                rows.append({"full_determinism": deterministic, **row, **facts})
                print(rows[-1], file=sys.stderr, flush=True)
                write_rows(rows, options.out / f"exactness-{name}", COLUMNS)
    print(json.dumps(summary(rows)))


def summary(rows: list[dict]) -> dict:
    """The line that is printed: the resumed run and the repeated one, with the settings that are tried first."""
    first = {row["run"]: row.get("weights_that_differ") for row in reversed(rows)}
    ours, peer = first.get("resumed"), first.get("again")
    return {
        "name": "exactness",
        "unit": f"share of the weights that differ after {STEPS} steps from those of the same run",
        "ours": ours,
        "peer": peer,
        "peer_name": "the run twice, without a resumption",
        "ratio": round(ours / peer, 2) if ours and peer else None,
        "equal": {f"{row['run']}, full_determinism {row['full_determinism']}": row.get("equal") for row in rows},
        "device": device_name(),
        "versions": versions(),
    }


# ---- three runs -----------------------------------------------------------------------------------------------------


def write_recipe(folder: Path, scale: Scale) -> Path:
    """The recipe of all runs, on text that is generated."""
    write_tokenizer(folder, WORDS)
    recipe = {
        "preset": scale.preset,
        "tokenizer_name_or_path": str(folder),
        "sources": write_sources(folder, megabytes=4),
        "max_seq_length": scale.row_length,
        "per_device_train_batch_size": scale.rows,
        "max_steps": STEPS,
        "warmup_steps": 0,
        "bf16": True,
        "use_cpu": DEVICE == "cpu",
        "eval_strategy": "no",
        "validation_rows": 4,
        "save_steps": CHECKPOINT,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def compared_runs(recipe: Path, runs: tuple[str, ...], deterministic: bool) -> Iterator[dict]:
    """A row for each of the runs beside the whole one, or one that says why there is none."""
    folder = recipe.parent / f"full-determinism-{deterministic}"
    run = "whole"
    try:
        whole = train(recipe, folder / run, deterministic)
        for run in runs:
            if run == "resumed":
                shutil.copytree(whole / f"checkpoint-{CHECKPOINT}", folder / run / f"checkpoint-{CHECKPOINT}")
            yield {"run": run, **compare(whole, train(recipe, folder / run, deterministic))}
    except RunFailed as error:
        yield {"run": run, "failed": str(error)}
    shutil.rmtree(folder, ignore_errors=True)


def train(recipe: Path, run: Path, deterministic: bool) -> Path:
    """Run the script to its end; of its checkpoints, which are large, only the middle one is kept."""
    command = ["train_pretrain.py", "--config", recipe, "--output_dir", run, "--full_determinism", deterministic]
    ended = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if ended.returncode:
        print(ended.stderr, file=sys.stderr)
        raise RunFailed((ended.stderr.strip().splitlines() or ["no message"])[-1][:200])
    shutil.rmtree(run / f"checkpoint-{STEPS}")
    return run


# ---- comparison -----------------------------------------------------------------------------------------------------


def compare(whole: Path, other: Path) -> dict:
    """How far the losses after the checkpoint and the final weights of two runs lie apart."""
    first, second = losses(whole), losses(other)
    weights = weight_differences(whole / "model.safetensors", other / "model.safetensors")
    launch = json.loads((other / LAUNCHES_FILE).read_text().splitlines()[-1])
    speeds = [line["tokens_per_second"] for line in read_metrics(other / METRICS_FILE) if "tokens_per_second" in line]
    return {
        "from_step": launch["from_step"],
        "equal": first == second and not weights["weights_that_differ"],
        "largest_loss_difference": max(abs(first[step] - second[step]) for step in first),
        "first_loss_that_differs": next((step for step in first if first[step] != second[step]), None),
        **weights,
        "tokens_per_second": round(statistics.median(speeds[-5:])),
    }


def losses(run: Path) -> dict[int, float]:
    """The logged loss of each step after the checkpoint."""
    lines = read_metrics(run / METRICS_FILE)
    return {line["step"]: line["loss"] for line in lines if "loss" in line and line["step"] > CHECKPOINT}


def weight_differences(first: Path, second: Path) -> dict[str, float]:
    """The share of the elements whose bits differ, and the largest difference; NaN and the sign of 0 have bits too."""
    differing, total, largest = 0, 0, 0.0
    with safe_open(first, "pt") as a, safe_open(second, "pt") as b:
        for name in a.keys():  # noqa: SIM118, this is no mapping
            one, other = a.get_tensor(name), b.get_tensor(name)
            bits = {2: torch.int16, 4: torch.int32}[one.element_size()]
            differing += (one.view(bits) != other.view(bits)).sum().item()
            largest = max(largest, (one.double() - other.double()).abs().max().item())
            total += one.numel()
    return {"weights_that_differ": differing / total, "largest_weight_difference": largest}


if __name__ == "__main__":
    main()
