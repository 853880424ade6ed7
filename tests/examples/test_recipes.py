"""The two recipes, trained as in their README, on small files at the paths that they name."""

import gzip
import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import train_grpo
from modeling_pure.commands import inspect
from modeling_pure.console import DISCLAIMER
from tests.conftest import WORDS, question_row, write_jsonl
from tests.examples.conftest import ROOT, command_with
from tests.scripts.conftest import SHAPE, metrics

QUESTION = (
    "A 54-year-old farmer comes with three weeks of fever, night sweats and a cough that brings up blood; a film of "
    "the chest shows a cavity in the upper lobe of the right lung. Which of these is given first?"
)


def options_of(program: str) -> list[str]:
    """The arguments of a README command, with the recipe's full path."""
    command = command_with(program)
    place = command.index("--config") + 1
    return ["--config", str(ROOT / command[place]), *command[place + 1 :]]


def test_lora_changes_the_linear_layers_by_its_rank_and_nothing_else(
    train_here, model_folder, questions, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/medqa").mkdir(parents=True)
    write_jsonl(tmp_path / "data/medqa/train.jsonl", [question_row(question) for question in questions])
    options = ["--model_name_or_path", model_folder, "--max_steps", "2", "--eval_steps", "2", "--save_steps", "2"]
    options += ["--learning_rate", "0.01", "--warmup_steps", "0"]
    printed = train_here(*options_of("grpo"), *options, script=train_grpo).out
    before, after = load_file(model_folder / "model.safetensors"), load_file("runs/lora/model.safetensors")
    assert before.keys() == after.keys()
    assert DISCLAIMER in printed
    changed = {name: after[name] - before[name] for name in before if not torch.equal(before[name], after[name])}
    assert changed.keys() == {name for name in before if "proj" in name}
    for difference in changed.values():
        values = torch.linalg.svdvals(difference)
        assert values[0] > 1e-3
        assert values[8:].max() < 1e-4 * values[0]


@pytest.fixture
def my_data(tmp_path, monkeypatch, questions) -> None:
    """Files of each kind where examples/my_mixture.yaml looks for them; two notes hold a question of the test set."""
    monkeypatch.chdir(tmp_path)
    for folder in ("books", "guides", "guides_held_out"):
        (tmp_path / "my_data" / folder).mkdir(parents=True)
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=40)) for _ in range(300)]
    notes = [{"text": f"note {text}"} for text in texts]
    notes[200:202] = [{"text": f"note {QUESTION}"}] * 2
    write_jsonl(tmp_path / "my_data/notes.jsonl", notes)
    books = [{"body": f"book {text}"} for text in texts]
    pq.write_table(pa.Table.from_pylist(books[:150]), "my_data/books/a.parquet")
    lines = "".join(json.dumps(book) + "\n" for book in books[150:])
    (tmp_path / "my_data/more_books.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for i, text in enumerate(texts[:20]):
        (tmp_path / "my_data" / ("guides_held_out" if i < 10 else "guides") / f"{i}.txt").write_text(f"guide {text}")
    write_jsonl(tmp_path / "my_data/questions.jsonl", [question_row(question) for question in questions])
    write_jsonl(tmp_path / "my_data/test_questions.jsonl", [{**question_row(questions[0]), "question": QUESTION}])


def small(tokenizer_folder) -> list[str]:
    """Options for a one-second run of five steps of four sequences."""
    settings = {
        "preset": "tiny",
        "model_overrides": json.dumps(SHAPE),
        "tokenizer_name_or_path": tokenizer_folder,
        "max_seq_length": 64,
        "max_steps": 5,
        "tokens_per_step": 256,
        "warmup_steps": 1,
        "eval_steps": 5,
        "save_steps": 5,
        "logging_steps": 5,
        "dataloader_num_workers": 0,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def test_my_mixture_is_shown_and_leaves_test_questions_out(train_here, my_data, tokenizer_folder):
    options = [*options_of("inspect"), *small(tokenizer_folder), "--sequences", "100"]
    lines = train_here(*options, script=inspect).out.splitlines()
    shown = {line.split()[0]: line for line in lines if len(re.findall(r"\d%", line)) == 2}
    asked_and_reached = {name: re.findall(r"([\d.]+)%", line) for name, line in shown.items()}
    shares = {"notes": "40.00", "books": "35.00", "guides": "15.00", "exam": "10.00"}
    assert asked_and_reached == {name: [share, share] for name, share in shares.items()}
    assert "2 evaluation question" in shown["notes"]  # the reason as it is counted


def test_my_mixture_trains_in_its_shares(train_here, my_data, tokenizer_folder):
    train_here(*options_of("pretrain"), *small(tokenizer_folder))
    (line,) = [line for line in metrics(Path("runs/my_mixture")) if "tokens/notes" in line]
    tokens = {name: line[f"tokens/{name}"] / 64 for name in ("notes", "books", "guides", "exam")}
    assert tokens == {"notes": 8, "books": 7, "guides": 3, "exam": 2}
