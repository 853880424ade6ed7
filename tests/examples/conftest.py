"""A small model that has something to say, and the examples' commands as their README has them."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.medqa.formats import format_prompt
from modeling_pure.medqa.questions import Question
from tests.processes import ROOT
from tests.scripts.conftest import SHAPE, train_here  # noqa: F401  a fixture

README = (ROOT / "examples/README.md").read_text()
COMMANDS = [shlex.split(text) for text in re.findall(r"`((?:python|pure) .*?)`", README)]


def command_with(word: str) -> list[str]:
    """The one command that names `word`, without `python` or `pure`."""
    (command,) = [command for command in COMMANDS if word in command]
    return command[1:]


def write_answering_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    answer_format: str = "letter",
    answer: str = " A. aspirin",
    steps: int = 20,
) -> Path:
    """Write a small model that has learned a little to give the same answer to every question."""
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": 0, "bos_token_id": 0}
    model = PureForCausalLM(PureConfig(**SHAPE, **ids, num_real_tokens=len(tokenizer)))
    prompts = tokenizer([format_prompt(question, answer_format) for question in questions[:16]]).input_ids
    target = tokenizer(answer + tokenizer.eos_token).input_ids
    length = min(map(len, prompts))
    rows = torch.tensor([prompt[-length:] + target for prompt in prompts])
    labels = rows.masked_fill(torch.arange(rows.shape[1]) < length, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(rows, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer, questions) -> Path:
    """That model; running the Python code in its folder raises an error."""
    folder = write_answering_model(tmp_path_factory.mktemp("answering"), tokenizer, questions)
    (folder / "modeling_pure.py").write_text("raise RuntimeError('code of the checkpoint was run')\n")
    return folder
