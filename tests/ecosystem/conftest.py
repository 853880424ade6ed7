"""A small Pure model with GPT-2's vocabulary and its Llama export; the commands and programs of docs/SERVING.md.

Programs that are no requirement of ours are fetched by `make runtimes`, which says where they are by RUNTIMES; there
their tests run, and without it they are skipped.
"""

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch
from urllib.request import Request, urlopen

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_pure import PureConfig, PureForCausalLM, export
from modeling_pure.tokenizer import load_tokenizer
from tests.gpt2_vocabulary import write_gpt2_tokenizer
from tests.model.twins import Twins, make_pair

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "SERVING.md").read_text()
needs_runtimes = pytest.mark.skipif("RUNTIMES" not in os.environ, reason="needs other programs: make runtimes")

# The commands of docs/SERVING.md that tests run.
EXPORT = "pure export --to llama runs/grpo runs/llama"
EXPORT_BACK = "pure export --to pure runs/llama runs/again"
EXPORT_BF16 = "pure export --to llama --dtype bfloat16 runs/grpo runs/llama-bf16"
SERVE = "transformers serve runs/llama --device cpu --port 8000"
CONVERT = "python convert_hf_to_gguf.py runs/llama --outtype f32 --outfile runs/pure.gguf"
CONVERT_Q8 = "python convert_hf_to_gguf.py runs/llama --outtype q8_0 --outfile runs/pure-q8.gguf"
RUN_BY_TESTS = {EXPORT, EXPORT_BACK, EXPORT_BF16, SERVE, CONVERT, CONVERT_Q8}

# The real heads (72 wide, four to one), and rows that, as in the real model, are no multiple of 256.
SHAPE = {"hidden_size": 288, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4}


def command(line: str, work: Path, **replaced: str) -> list[str]:
    """A command of the document as it is run here: with our Python, and `runs/` in a folder of the test."""
    words = [str(work / word) if word.startswith("runs/") else replaced.get(word, word) for word in shlex.split(line)]
    options = {"python": [], "pure": ["-m", "modeling_pure"], "transformers": ["-m", "transformers.cli.transformers"]}
    return [sys.executable, *options[words[0]], *words[1:]]


def run(line: str, work: Path, **replaced: str) -> str:
    """Run a command of the document; returns its output, and fails with that output unless it exits with 0."""
    result = subprocess.run(command(line, work, **replaced), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout


def export_here(line: str, work: Path) -> str:
    """The same for an export, in this process, which takes a tenth of the time."""
    with patch.object(sys, "argv", command(line, work)[3:]), redirect_stdout(io.StringIO()) as printed:
        export.main()
    return printed.getvalue()


def python_block(beginning: str) -> str:
    """The Python of the document whose block begins so."""
    (block,) = [text for text in DOCUMENT.split("```python\n")[1:] if text.startswith(beginning)]
    return block.split("```")[0]


def post(address: str, body: dict) -> dict:
    """The response of a server to a JSON request."""
    call = Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(call, timeout=60) as answer:
        return json.load(answer)


@pytest.fixture(scope="package")
def work(tmp_path_factory) -> Path:
    """A folder whose `runs/grpo` is a Pure checkpoint, and `runs/llama` what the command made of it."""
    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    config = PureConfig(**SHAPE, num_key_value_heads=1, initializer_range=0.08, head_initializer_range=0.08)
    PureForCausalLM(config).save_pretrained(folder / "runs" / "grpo")
    write_gpt2_tokenizer(str(folder / "gpt2"))
    load_tokenizer("key", str(folder / "gpt2")).save_pretrained(folder / "runs" / "grpo")
    run(EXPORT, folder)
    return folder


@pytest.fixture(scope="package")
def pure(work):
    """The checkpoint as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(work / "runs" / "grpo").eval()


@pytest.fixture(scope="package")
def gpt2(work):
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(work / "runs" / "grpo")


@pytest.fixture(scope="package")
def likeliest_letter(pure, gpt2) -> Callable[[str], int]:
    """Which letter the model holds likeliest after a prompt, by the model itself."""
    letters = [ids for (ids,) in gpt2([" A", " B", " C", " D"]).input_ids]

    def likeliest_letter(prompt: str) -> int:
        with torch.no_grad():
            return int(pure(gpt2(prompt, return_tensors="pt").input_ids).logits[0, -1, letters].argmax())

    return likeliest_letter


@pytest.fixture
def pair() -> Twins:
    """A Pure and a Llama of the same weights."""
    pure, llama = make_pair("sdpa")
    pure.generation_config.suppress_tokens = None
    return pure.eval(), llama.eval()
