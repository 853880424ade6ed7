"""What `make wheel` runs with the installed package, away from the checkout: its files, a tiny model, its commands."""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import files, metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import modeling_pure
import pure
from modeling_pure import PureConfig, PureForCausalLM

SOURCE = Path(__file__).resolve().parents[1] / "modeling_pure"
INSTALLED = Path(modeling_pure.__file__).parent


def check_files() -> None:
    """Everything in the package's folder is installed, and the licence and description with it."""
    assert INSTALLED.is_relative_to(sys.prefix), INSTALLED
    names = {path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    missing = [str(name) for name in names if not (INSTALLED / name).is_file()]
    assert not missing, missing
    assert any(file.match("*.dist-info/licenses/LICENSE") for file in files("modeling_pure"))
    assert metadata("modeling_pure")["License-Expression"] == "Apache-2.0"
    assert "Not for clinical use" in metadata("modeling_pure").get_payload()


def check_model() -> None:
    """A tiny model is saved, loaded by its type and generates the same tokens."""
    model = PureForCausalLM(PureConfig.from_preset("tiny")).eval()
    model.save_pretrained("model")
    loaded = AutoModelForCausalLM.from_pretrained("model")
    assert type(loaded) is PureForCausalLM
    tokens = torch.tensor([[1, 2, 3]])
    outputs = [one.generate(tokens, max_new_tokens=8, do_sample=False) for one in (model, loaded)]
    assert torch.equal(*outputs)
    assert outputs[0].shape == (1, 11)


def check_command(*words: str) -> None:
    """The installed `pure`, or a command of it, explains itself."""
    command = [str(Path(sys.executable).with_name("pure")), *words, "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    assert result.stdout.startswith(f"usage: {' '.join(['pure', *words])} "), result.stdout
    print(*command, flush=True)


if __name__ == "__main__":
    check_files()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        os.chdir(folder)
        check_model()
        check_command()
        list(pool.map(check_command, pure.MODULES))
    print(f"{INSTALLED}: files, model and commands are there")
