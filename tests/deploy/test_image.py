"""The image: what the Dockerfile copies is in the context, nothing else is, and it is enough to run the scripts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

from tests.deploy.conftest import ROOT

DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
PATTERNS = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def copied() -> list[tuple[str, str]]:
    """Sources and destinations of the COPY lines."""
    lines = [line.split()[1:] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    arguments = [[word for word in line if not word.startswith("--")] for line in lines]
    return [(source, destination) for *sources, destination in arguments for source in sources]


@pytest.fixture(scope="module")
def context() -> set[str]:
    """The files that docker would send, by docker's own rules."""
    files = exclude_paths(str(ROOT), [*PATTERNS])
    return {file for file in files if (ROOT / file).is_file()}


def test_the_context_is_what_is_copied(context):
    sources = [source for source, _ in copied()]
    assert "modeling_pure" in sources
    for source in sources:
        assert any(Path(file).is_relative_to(source) for file in context), source
    asides = {"Dockerfile", ".dockerignore"}
    assert not [one for one in context - asides if not any(Path(one).is_relative_to(source) for source in sources)]


def test_no_secret_and_no_leftover_is_in_the_context(context, tmp_path):
    folders = {part for file in context for part in Path(file).parts}
    assert not folders & {".git", ".venv", "runs", "__pycache__", ".env", "tests"}
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    (tmp_path / "deploy").mkdir()
    for name in ("deploy/.env", ".env", "deploy/kept.yaml"):
        (tmp_path / name).touch()
    assert exclude_paths(str(tmp_path), [*PATTERNS]) & {"deploy/.env", ".env", "deploy/kept.yaml"} == {
        "deploy/kept.yaml"
    }


def test_what_is_copied_is_enough(context, tmp_path):
    for file in context:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    code = (
        "import pure, train_pretrain, train_grpo, eval_medqa, deploy.launch, modeling_pure; "
        "print(modeling_pure.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(tmp_path)


def test_the_large_layer_is_before_the_code_and_the_user_is_not_root():
    steps = [line.split()[0] for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    lines = DOCKERFILE.splitlines()
    install = next(i for i, line in enumerate(lines) if "pip install" in line)
    code = next(i for i, line in enumerate(lines) if "modeling_pure" in line)
    assert install < code
    assert "USER" in steps
    assert "USER root" not in DOCKERFILE
    assert not re.search(r"(?i)(arg|env)\s+\w*(token|secret|password)", DOCKERFILE)
