"""From the command to the first new step of a resumed run, beside the stock Trainer, which reads its data anew.

    python -m benchmarks.resume [--steps 300]

Both train a very small model (with a small vocabulary, so that the data and not the model take the time) on the same
generated English text, 32,768 tokens a step, up to a checkpoint; then the same command goes on, and its seconds up to
the first new step are taken, processes and imports included, as they were at the very start. The peer is a streaming
mixture of `datasets` as one writes it first (see benchmarks.data), and Trainer's own resumption: all batches so far
are made once more and thrown away. What that comes to at step 30,000 is an extrapolation from what the start takes and
from what the resumption takes more, in proportion to the steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from torch.utils.data import IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.data import naive_rows
from benchmarks.gpu_pretrain import device_name, versions
from benchmarks.text import write_sources, write_tokenizer
from modeling_pure.data.mixture import collate_rows
from modeling_pure.data.tokenizer import load_tokenizer

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
ROW, ROWS, VOCABULARY = 512, 64, 2048
TURNS = 3
FAR = 30_000


def main() -> None:
    """Train both, resume both, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="steps up to the checkpoint")
    parser.add_argument("--peer", nargs=2, metavar=("FOLDER", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        train_peer(Path(options.peer[0]), int(options.peer[1]))
    else:
        print(json.dumps(measure(options.steps)))


def measure(steps: int) -> dict:
    """Seconds of both, in turns."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder, VOCABULARY - 48)
        recipe = write_recipe(folder)
        commands = {
            "ours": ["train_pretrain.py", "--config", str(recipe), "--output_dir", f"{folder}/ours", "--max_steps"],
            "peer": ["-m", "benchmarks.resume", "--peer", name],
        }
        begun = {who: run([*command, str(steps)], 1, folder / who) for who, command in commands.items()}
        for turn in range(TURNS):
            for who, command in commands.items():
                seconds[who].append(run([*command, str(steps + 1 + turn)], steps + 1 + turn, folder / who))
    ours, peer = (statistics.median(seconds[who]) for who in ("ours", "peer"))
    return {
        "name": "resume",
        "unit": f"seconds from the command to the first new step, at step {steps}",
        "ours": round(ours, 2),
        "peer": round(peer, 2),
        "peer_name": "stock Trainer on a streaming interleave_datasets mixture, its data made anew",
        "ratio": round(peer / ours, 2),
        "seconds_at_step_0": {who: round(value, 2) for who, value in begun.items()},
        "extrapolated": {
            "step": FAR,
            "ours_seconds": extrapolate(begun["ours"], ours, steps),
            "peer_seconds": extrapolate(begun["peer"], peer, steps),
        },
        "tokens_per_step": ROW * ROWS,
        "device": device_name(),
        "versions": versions(),
    }


def extrapolate(at_start: float, at_step: float, steps: int) -> int | None:
    """Seconds at a far step; None where a resumption takes no longer than the start, within the noise of both."""
    return round(at_start + (at_step - at_start) * FAR / steps) if at_step > at_start else None


def run(command: list[str], step: int, folder: Path) -> float:
    """Run a command to its end; returns the seconds until it had made a step."""
    began, seconds, lines = time.perf_counter(), 0.0, folder / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not seconds and process.poll() is None:
        time.sleep(0.01)
        if lines.exists() and f'"step": {step},' in lines.read_text():
            seconds = time.perf_counter() - began
    if process.wait() or not seconds:
        raise RuntimeError(f"{' '.join(command)} has failed or has not made step {step}")
    return seconds


def write_recipe(folder: Path) -> Path:
    """Our recipe on generated text."""
    recipe = {
        "preset": "tiny",
        "model_overrides": {**SHAPE, **HEADS, "vocab_size": VOCABULARY},
        "tokenizer_name_or_path": str(folder),
        "sources": write_sources(folder, megabytes=4),
        "max_seq_length": ROW,
        "per_device_train_batch_size": ROWS,
        "warmup_steps": 0,
        "eval_strategy": "no",
        "validation_rows": 4,
        "save_steps": 100,
        "logging_steps": 1,
        "report_to": "none",
        "dataloader_num_workers": 0,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


# ---- the peer -------------------------------------------------------------------------------------------------------


class NaiveRows(IterableDataset):
    """A streaming mixture without a state."""

    def __init__(self, folder: Path):
        self.recipe = yaml.safe_load((folder / "recipe.yaml").read_text())["sources"]
        self.tokenizer = load_tokenizer("tokenizer", str(folder))

    def __iter__(self):
        for row in naive_rows(self.recipe, self.tokenizer):
            yield from ({"input_ids": part} for part in row["input_ids"].reshape(-1, ROW))


class StepFile(TrainerCallback):
    """Writes a line for each step."""

    def __init__(self, folder: Path):
        self.file = folder / "metrics.jsonl"

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """After the optimizer's step."""
        with self.file.open("a") as file:
            file.write(json.dumps({"step": state.global_step, "peer": True}) + "\n")


def train_peer(folder: Path, steps: int) -> None:
    """Train, or go on, as the stock Trainer does."""
    out = folder / "peer"
    out.mkdir(exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=ROWS,
        save_steps=100,
        report_to="none",
        disable_tqdm=True,
    )
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, use_cache=False, **SHAPE, **HEADS))
    trainer = Trainer(model, arguments, train_dataset=NaiveRows(folder), data_collator=collate_rows)
    trainer.add_callback(StepFile(out))
    trainer.train(resume_from_checkpoint=any(out.glob("checkpoint-*")))


if __name__ == "__main__":
    main()
