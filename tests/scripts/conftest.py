"""Recipes small enough for a test, and a way to run a script as a user does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from packaging.version import Version

import eval_medqa
import train_pretrain
from modeling_pure.errors import run_script
from modeling_pure.medqa.scorers import Batches
from modeling_pure.training.run_folder import MetricsFile
from tests.processes import ROOT, Program, free_port, run

pytest.register_assert_rewrite("tests.scripts.runs")

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}

# Fixed in transformers 5.18: on CPUs Trainer loads the optimizer of several processes to "cpu:0", which torch refuses.
ranks_resume_on_cpus = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"), reason="transformers 5.17 cannot resume several CPU processes"
)
# Seen with torch 2.11 and not with 2.13: after a checkpoint, FSDP2's next forward pass mixes tensors and DTensors.
fsdp2_goes_on = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"), reason="FSDP2 of torch 2.11 fails in the step after a checkpoint"
)


def kill_once_written(file: Path, *command: str, lines: int = 0) -> None:
    """Run a script and kill -9 it, with its workers, as soon as `file` is there.

    With `lines`, `file` is a folder: as soon as a file in it holds so many.
    """
    program = Program(*command)

    def written() -> bool:
        return any(one.read_bytes().count(b"\n") >= lines for one in file.glob("*")) if lines else file.exists()

    while program.poll() is None and not written():
        time.sleep(0.02)
    assert program.poll() is None, "the run was over before it could be killed"
    program.kill_group(signal.SIGKILL)
    program.wait()


def metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def pretrain_recipe(made_once, tokenizer_folder, sources) -> Path:
    """12 steps of pretraining with a checkpoint every 4."""
    recipe = {
        "preset": "tiny",
        "model_overrides": SHAPE,
        "tokenizer_name_or_path": str(tokenizer_folder),
        "sources": sources,
        "max_seq_length": 64,
        "max_steps": 12,
        "warmup_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.003,
        "eval_steps": 4,
        "save_steps": 4,
        "logging_steps": 1,
        "validation_sequences": 8,
        "dataloader_num_workers": 1,
    }
    text = yaml.safe_dump(recipe, sort_keys=False)
    return made_once("recipe", lambda folder: (folder / "pretrain.yaml").write_text(text)) / "pretrain.yaml"


@pytest.fixture(scope="session")
def pretrained(made_once, pretrain_recipe) -> Path:
    """A finished, uninterrupted run of that recipe, shared by all workers: tests that change it take a copy."""
    options = ["--config", pretrain_recipe, "--output_dir"]
    return made_once("pretrained", lambda folder: run("train_pretrain.py", *options, folder))


@pytest.fixture(scope="session")
def grpo_recipe(tmp_path_factory, pretrained, corpus) -> Path:
    """4 steps of GRPO, two on each rollout, with a checkpoint every 2."""
    recipe = {
        "model_name_or_path": str(pretrained),
        "questions": str(corpus / "questions.jsonl"),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "steps_per_generation": 4,
        "max_steps": 4,
        "max_tokens": 0,
        "max_completion_length": 6,
        "learning_rate": 0.001,
        "warmup_steps": 1,
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
    }
    path = tmp_path_factory.mktemp("recipe") / "grpo.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def train_here(monkeypatch, capsys):
    """Train in this process, which takes a second where a new one takes five; returns stdout and stderr."""

    def train_here(*options, expect: int = 0, script=train_pretrain) -> tuple[str, str]:
        name = f"{script.__name__}.py"
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            run_script(script.main, name)
        captured = capsys.readouterr()
        assert stop.value.code == expect, captured.err[-3000:]
        return captured

    return train_here


@pytest.fixture
def first_steps(monkeypatch) -> list[int]:
    """The steps after which the trainings of a test have begun: 0 for a new run."""
    steps: list[int] = []
    begin = MetricsFile.on_train_begin

    def note(self, args, state, control, **kwargs):
        steps.append(state.global_step)
        begin(self, args, state, control, **kwargs)

    monkeypatch.setattr(MetricsFile, "on_train_begin", note)
    return steps


def run_two(*options: str, script: str = "train_pretrain.py", machine: str = "multi_gpu", expect: int = 0) -> str:
    """Start two processes with `accelerate_configs/MACHINE.yaml`; returns their output."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{machine}.yaml"]
    launcher += ["--num_processes", "2", "--main_process_port", str(free_port()), script]
    result = subprocess.run(
        [sys.executable, *launcher, *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "CI": "true", "ACCELERATE_USE_CPU": "true"},
    )
    assert (result.returncode == 0) == (expect == 0), result.stdout[-2000:] + result.stderr[-4000:]
    assert expect or re.search(r"\b2 process", result.stdout)
    return result.stdout + result.stderr


def start_ranks(*command: object, number: int = 2, **environment: str) -> list[Program]:
    """Start a script on several processes of this machine, with what torchrun puts into their environment."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    place |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), **environment}
    ranks = map(str, range(number))
    return [Program(*command, environment={**place, "RANK": rank, "LOCAL_RANK": rank}) for rank in ranks]


def run_ranks(*command: object, expect: int = 0, **more: Any) -> list[str]:
    """Run a script on several processes, all of which have to end with `expect`; returns what each said."""
    programs = start_ranks(*command, **more)
    said = ["".join(program.communicate(timeout=300)) for program in programs]
    assert [program.returncode for program in programs] == [expect] * len(said), "\n".join(
        text[-3000:] for text in said
    )
    return said


@pytest.fixture
def evaluate(train_here, pretrained, corpus):
    """Evaluate the pretrained model on all questions, in this process; returns what was printed and the results."""

    def evaluate(folder, *options, expect: int = 0, model=pretrained, split: str = "all"):
        settings = ["--questions", corpus / "questions.jsonl", "--split", split, "--output_dir", folder]
        settings += ["--update_card", str(model != pretrained)]  # other tests share that one
        printed = train_here("--model_name_or_path", model, *settings, *options, script=eval_medqa, expect=expect)
        return printed, json.loads((folder / "eval.json").read_text()) if expect == 0 else printed.err

    return evaluate


def stops_after_one(asked, questions) -> Batches:
    """A scorer that is interrupted after the first question."""

    def ask(batch):
        if batch != [0]:
            raise KeyboardInterrupt
        return [{"log_likelihoods": [0.0, -9.0, -9.0, -9.0], "cut": False}]

    return Batches([[i] for i in range(len(questions))], ask)


def predictions_of(folder: Path) -> list[dict]:
    """The lines of an evaluation's predictions.jsonl."""
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
