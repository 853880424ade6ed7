"""Gather the files for `line` on a machine without a network into one folder that git ignores."""

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from modeling_pure.errors import InputError
from modeling_pure.tokenizer import load_tokenizer
from modeling_pure.training.run_folder import git_commit

PRETRAIN_RECIPE, GRPO_RECIPE = "recipes/gpu/pretrain.yaml", "recipes/gpu/grpo.yaml"
TEXTS = ("finepdfs", "fineweb_edu", "c4")
LIMIT_MB = 60
# Missing on a machine with torch, transformers and peft; pure Python, 2 MB.
WHEELS = (
    *("trl==1.16.0", "datasets==5.2.0", "multiprocess==0.70.19", "dill==0.4.1", "evaluate==0.4.6"),
    *("bm25s==0.3.16", "tenacity==9.2.1", "httpx==0.28.1"),
)
COMMANDS = ("checks speed grpo --seconds 430", "line profile --seconds 250")


def paths(folder: Path) -> list[str]:
    """The recipe's paths to files in the folder; the texts themselves are not needed there."""
    places = {
        "tokenizer_name_or_path": folder / "tokenizer",
        "sources.usmle.path": folder / "train.jsonl",
        "decontaminate": folder / "dev.jsonl",
    }
    return [text for key, path in places.items() for text in (f"--{key}", str(path))]


def prepare(given: list[str]) -> int:
    """Gather wheels, tokenizer, questions and pretokenized sequences, and print the commands for the machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu prepare", description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder; use the same path on the machine")
    parser.add_argument("--tokenizer", default="openai-community/gpt2", help="a Hub id or a folder")
    parser.add_argument("--questions", type=Path, default=Path("data/medqa"), help="holds train.jsonl and dev.jsonl")
    options = parser.parse_args(given)
    folder = options.folder
    for name in ("train.jsonl", "dev.jsonl"):
        if not (options.questions / name).is_file():
            raise InputError(f"questions: '{options.questions}' has no {name}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train.jsonl", "dev.jsonl"):
        shutil.copyfile(options.questions / name, folder / name)
    load_tokenizer("tokenizer", options.tokenizer).save_pretrained(folder / "tokenizer")
    pack(folder, *paths(folder))
    wheels = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder / "wheels"]
    run_python(*wheels, *WHEELS)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    print(f"{folder}: {size:.1f} MB of {LIMIT_MB}; on the machine, in this checkout:\n")
    print(f"python3 -m pip install --no-index --no-deps {shlex.quote(str(folder))}/wheels/*.whl")
    for number, arguments in enumerate(COMMANDS, 1):
        command = f"python3 -m benchmarks.gpu {arguments} --data {folder} --out results-{number}"
        print(f"HF_HUB_OFFLINE=1 GIT_COMMIT={git_commit()} {command}")  # the checkout may lack its history
    return 0 if size <= LIMIT_MB else 1


def pack(folder: Path, *options: str) -> None:
    """Pretokenize the sequences of the recipe's run."""
    run_python("-m", "modeling_pure", "pretokenize", "--config", PRETRAIN_RECIPE, *options, "--out", folder / "rows")


def run_python(*arguments: object) -> None:
    """Run a Python command; raises if it fails, after its own error message."""
    command = [sys.executable, *map(str, arguments)]
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        raise InputError(f"{shlex.join(command[1:4])} ended with exit code {code}")
