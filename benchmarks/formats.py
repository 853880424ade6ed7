"""The same model trained on MedQA's answers by letter, by text and by both, then evaluated by letter, text and cloze.

    python -m benchmarks.formats --questions data/medqa/train.jsonl --dev data/medqa/dev.jsonl --text data/pretrain

Pretrains a model of 5.5M parameters from scratch for each format and seed, on half exam text and half documents (every
`*.train.*` in the folder `--text`, in equal shares), with a vocabulary of 8,192 trained on both. Only the answer
format of the exam text differs. The same command continues: `--work` keeps finished runs. Prints a table, then a line
of JSON.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import print_line
from modeling_pure.console import print_table
from modeling_pure.demo.world import train_tokenizer
from modeling_pure.records import open_records

TAUGHT = {"letter": {"letter": 1.0}, "text": {"text": 1.0}, "both": {"text": 0.5, "letter": 0.5}}
ASKED = ("letter", "text", "cloze")
VOCABULARY = 8192
DOCUMENTS = 2000  # of each file, to train the vocabulary
RECIPE: dict[str, Any] = {
    "preset": "tiny",
    "model_overrides": {
        "vocab_size": VOCABULARY,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    "max_seq_length": 512,
    "document_mask": True,
    "tokens_per_step": 2048,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-3,
    "warmup_steps": 40,
    "lr_scheduler_kwargs": {"min_lr": 2e-4},
    "save_steps": 200,
    "eval_steps": 200,
    "validation_sequences": 40,
    "dataloader_num_workers": 0,
    "logging_steps": 25,
}


def main() -> None:
    """Train and evaluate every model, and print the table and one line."""
    args = parse_arguments(str(__doc__), "runs/formats")
    work = Path(args.work)
    write_tokenizer(work / "tokenizer", args)
    accuracies: dict[tuple[str, str], list[float]] = {}
    for seed, taught in itertools.product(range(args.seeds), TAUGHT):
        recipe = write_recipe(args, f"{taught}-{seed}", TAUGHT[taught], seed=seed)
        run("train_pretrain.py", "--config", str(recipe))
        for asked, accuracy in evaluate(work / f"{taught}-{seed}", args.dev).items():
            accuracies.setdefault((taught, asked), []).append(accuracy)
    show(accuracies, args)


def parse_arguments(description: str, work: str) -> argparse.Namespace:
    """The texts, and the size of the runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", required=True, help="train questions, in MedQA's format")
    parser.add_argument("--dev", required=True, help="questions to evaluate")
    parser.add_argument("--text", required=True, help="folder with *.train.parquet or *.train.jsonl")
    parser.add_argument("--work", default=work, help="folder for the runs")
    parser.add_argument("--steps", type=int, default=400, help="of 2,048 tokens")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def write_tokenizer(folder: Path, args: argparse.Namespace) -> None:
    """Train a vocabulary of 8,192 on the first documents of each file and on the train questions, unless it exists."""
    if (folder / "tokenizer.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sample = folder / "documents.jsonl"
    with sample.open("w", encoding="utf-8") as file:
        for path in text_files(args):
            for row in itertools.islice(open_records("text", str(path)), DOCUMENTS):
                file.write(json.dumps({"text": row["text"]}) + "\n")
    train_tokenizer([sample, Path(args.questions)], folder, vocab_size=VOCABULARY)


def text_files(args: argparse.Namespace) -> list[Path]:
    """The files of text to train on."""
    return sorted(Path(args.text).glob("*.train.*"))


def write_recipe(args: argparse.Namespace, name: str, answer_formats: dict[str, float], **changes: Any) -> Path:
    """Write the recipe of the run `name`."""
    work = Path(args.work)
    files = text_files(args)
    sources: dict[str, Any] = {
        path.name.split(".")[0]: {"weight": f"1/{2 * len(files)}", "path": str(path)} for path in files
    }
    exam = {"path": args.questions, "format": "medqa", "validation_path": args.dev, "answer_formats": answer_formats}
    sources["usmle"] = {"weight": "1/2", **exam}
    recipe = {
        **RECIPE,
        "output_dir": str(work / name),
        "tokenizer_name_or_path": str(work / "tokenizer"),
        "sources": sources,
        "max_steps": args.steps,
        **changes,
    }
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def evaluate(model: Path, questions: str) -> dict[str, float]:
    """The accuracy of a model by scorer."""
    folder = model / "eval"
    if not (folder / "eval.json").is_file():
        ways = ["--scorer", ASKED[0], "--beside", *ASKED[1:]]
        options = ["--questions", questions, "--split", "all", *ways, "--output_dir", str(folder)]
        run("eval_medqa.py", "--model_name_or_path", str(model), *options)
    formulations = json.loads((folder / "eval.json").read_text())["formulations"]
    return {asked: float(formulations[asked]["accuracy"]) for asked in ASKED}


def run(*command: str, expected: tuple[int, ...] = (0,)) -> None:
    """Run one of the scripts; exit with its code unless that is expected."""
    print(f"python {' '.join(command)}", flush=True)
    if (code := subprocess.run([sys.executable, *command]).returncode) not in expected:
        sys.exit(code)


def show(accuracies: dict[tuple[str, str], list[float]], args: argparse.Namespace) -> None:
    """Print the table, and a JSON line that compares text answers after text training with letters after letters."""
    rows = [[taught, *(cell(accuracies[taught, asked]) for asked in ASKED)] for taught in TAUGHT]
    print_table(
        f"Accuracy on {args.dev}, {args.seeds} seeds", ["taught", *(f"asked by {name}" for name in ASKED)], rows
    )
    ours, peer = (statistics.mean(accuracies[name, name]) for name in ("text", "letter"))
    print_line(
        "formats",
        f"accuracy, chance 0.25, {args.steps * RECIPE['tokens_per_step']:,} tokens",
        round(ours, 4),
        round(peer, 4),
        "letters, taught and asked",
        round(ours / peer, 3),
        accuracies={f"taught {taught}, asked {asked}": values for (taught, asked), values in accuracies.items()},
    )


def cell(values: list[float]) -> str:
    """The mean over seeds, with the lowest and highest."""
    return f"{statistics.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})"


if __name__ == "__main__":
    main()
