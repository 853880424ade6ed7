"""docs/SERVING.md: each of its commands runs in a test or says what it needs, and its Python is run somewhere."""

import re
from pathlib import Path

import pytest

from tests.ecosystem import conftest
from tests.ecosystem.conftest import DOCUMENT, EXPORT_BACK, EXPORT_BF16, ROOT, export_here

RUN_HERE = {value for name, value in vars(conftest).items() if name.isupper() and isinstance(value, str)} - {DOCUMENT}
RUNTIMES = ["xllamacpp", "fastapi", "torchao", "bitsandbytes"]
REQUIREMENTS = "".join(file.read_text() for file in sorted(ROOT.glob("requirements*.txt")))


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command_is_run_or_says_what_it_needs():
    marked = [line for line in commands() if line.endswith(("  # needs a GPU", "  # needs the network"))]
    assert sorted(RUN_HERE) == sorted(set(commands()) - set(marked))
    for name in RUN_HERE:  # by a test, which takes it from there
        constant = next(key for key, value in vars(conftest).items() if value == name)
        uses = [
            file
            for file in Path(__file__).parent.glob("*.py")
            if re.search(rf"\b{constant}\b(?! =)", file.read_text())
        ]
        assert uses, constant


def test_there_and_back_and_in_bf16(work):
    assert "equal to the last bit" in export_here(EXPORT_BACK, work)
    assert "float32 to bfloat16" in export_here(EXPORT_BF16, work)
    assert (work / "runs" / "again" / "config.json").read_bytes() == (
        work / "runs" / "grpo" / "config.json"
    ).read_bytes()


@pytest.mark.parametrize("package", ["transformers", "torch", "peft", *RUNTIMES])
def test_the_versions_it_names_are_those_that_are_tested(package):
    (pinned,) = re.findall(rf"^{package}==(.*)$", REQUIREMENTS, re.M)
    assert f"{package} {pinned}" in DOCUMENT


def test_it_begins_with_the_disclaimer_and_names_files_that_exist():
    assert "Not for clinical use" in DOCUMENT.splitlines()[2]
    for name in re.findall(r"`((?:modeling_pure|tests)/[\w/]+(?:\.py)?)`", DOCUMENT):
        assert (ROOT / name).exists(), name
