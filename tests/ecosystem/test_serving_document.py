"""docs/SERVING.md: a test runs each command or the command states what it needs; its Python runs too."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.ecosystem.conftest import DOCUMENT, EXPORT_BACK, EXPORT_BF16, RUN_BY_TESTS, export_here

RUNTIMES = ["xllamacpp", "fastapi", "torchao", "bitsandbytes"]
REQUIREMENTS = "".join(file.read_text() for file in sorted(Path(__file__).parents[2].glob("requirements*.txt")))


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command_is_run_or_states_what_it_needs():
    marked = [line for line in commands() if line.endswith(("  # needs a GPU", "  # needs the network"))]
    assert sorted(RUN_BY_TESTS) == sorted(set(commands()) - set(marked))


def test_there_and_back_and_in_bf16(work):
    export_here(EXPORT_BACK, work)
    export_here(EXPORT_BF16, work)
    weights = load_file(work / "runs" / "llama-bf16" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert (work / "runs" / "again" / "config.json").read_bytes() == (
        work / "runs" / "grpo" / "config.json"
    ).read_bytes()


@pytest.mark.parametrize("package", ["transformers", "torch", "peft", *RUNTIMES])
def test_the_versions_it_names_are_those_that_are_tested(package):
    (pinned,) = set(re.findall(rf"^{package}==(.*)$", REQUIREMENTS, re.M))
    assert f"{package} {pinned}" in DOCUMENT
