"""README.md, CONTRIBUTING.md and docs/: their commands run as written or state what they need; names are right.

A command of a bash block is run in a copy of the repository whose data/ and recipes/local are small, after PREPARE and
what stands before it in its document. One that ends in a remark of NEEDS is not run: the files that it names are there
and a program of ours takes its options. `run_elsewhere` says what CI and other tests run.
"""

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from modeling_pure.console import DISCLAIMER
from modeling_pure.recipe import RecipeParser, read_recipe
from pure import MODULES
from tests.conftest import question_row, write_jsonl
from tests.ecosystem.conftest import RUN_BY_TESTS as RUN_BY_SERVING_TESTS
from tests.scripts.conftest import SHAPE

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
DOCUMENTS.append(ROOT / "docs/results/README.md")
FOLDERS = ("accelerate_configs", "benchmarks", "deploy", "docs", "examples", "modeling_pure", "recipes", "tests")
PACKAGES = ("modeling_pure", "benchmarks")
SCRIPTS = ("train_pretrain.py", "train_grpo.py", "eval_medqa.py")
NEEDS = ("needs a GPU", "needs the network", "needs a cluster")

PREPARE = (
    "pure pretrain --config recipes/local/pretrain.yaml",
    "pure grpo --config recipes/local/grpo.yaml",
    "pure eval --config recipes/local/eval.yaml",
)
SMALL = {
    "pretrain": {
        "preset": "tiny",
        "model_overrides": SHAPE,
        "tokenizer_name_or_path": "data/tokenizer",
        "max_seq_length": 64,
        "max_steps": 4,
        "tokens_per_step": 256,
        "warmup_steps": 1,
        "eval_steps": 4,
        "save_steps": 4,
        "logging_steps": 2,
        "validation_sequences": 8,
        "dataloader_num_workers": 0,
    },
    "grpo": {
        "prompts_per_step": 2,
        "num_generations": 4,
        "max_steps": 2,
        "max_completion_length": 6,
        "medqa_dev_questions": 4,
        "warmup_steps": 1,
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
    },
}


def commands_in(text: str) -> list[tuple[str, str]]:
    """The commands of a document's bash blocks, each on one line, with its comment."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", textwrap.dedent(block)).splitlines()]
    parts = [re.split(r"(?:^|\s+)# ?", line, maxsplit=1) for line in lines]
    return [(command, "".join(comment)) for command, *comment in parts if command]


def run_elsewhere(command: str) -> bool:
    """What CI runs itself, what only chooses among its tests, and what the tests of docs/SERVING.md run."""
    return bool(re.match(r"make\s|(\S*python -m )?pytest\b", command)) or command in RUN_BY_SERVING_TESTS


COMMANDS = [(path.name, *found) for path in DOCUMENTS for found in commands_in(path.read_text())]
TO_RUN = {command: name for name, command, comment in COMMANDS if not any(needs in comment for needs in NEEDS)}
RUN = {command: name for command, name in TO_RUN.items() if not run_elsewhere(command)}
NOT_RUN = {command: name for name, command, _ in COMMANDS if command not in RUN}


def program_in(command: str) -> tuple[str, list[str]] | None:
    """The module of ours that a command starts, also through a launcher or `pure`, and its options."""
    shell = shlex.shlex(re.sub(r"\s\d?>+\s*\S+", "", command), posix=True, punctuation_chars=True)
    shell.whitespace_split = True
    words = ["", *shell]
    for before, word, rest in zip(words, words[1:], range(2, len(words) + 1), strict=False):
        started = MODULES.get(word) if before == "pure" else word.removesuffix(".py") if word in SCRIPTS else None
        if before == "-m" and word.partition(".")[0] in PACKAGES:
            started = word
        if started:
            return started, list(takewhile(lambda one: not set(one) <= set("()<|&;"), words[rest:]))
    return None


class Accepted(Exception):
    """A program has read its options."""


def then_stop(parse: Callable) -> Callable:
    """A parser's method that exits before the program starts its work."""

    def parse_and_stop(*args):
        parse(*args)
        raise Accepted

    return parse_and_stop


@pytest.fixture(scope="module")
def world(tmp_path_factory, corpus, questions, tokenizer_folder) -> Path:
    """A small repository in which recipes/local has been run."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("accelerate_configs", *PACKAGES, "docs", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", "pure.py", *SCRIPTS):
        shutil.copy(ROOT / file, folder)
    (folder / "bin").mkdir()
    program = folder / "bin/pure"  # of this copy, whatever is installed
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/pure.py "$@"\n')
    program.chmod(0o755)
    (folder / "data/pretrain").mkdir(parents=True)
    (folder / "data/medqa").mkdir()
    shutil.copytree(tokenizer_folder, folder / "data/tokenizer")
    for file in ("finepdfs", "fineweb_edu", "c4"):
        rows = [json.loads(line) for line in (corpus / f"{file}.jsonl").read_text().splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"data/pretrain/{file}.parquet")
    write_jsonl(folder / "data/medqa/train.jsonl", [question_row(question) for question in questions[:100]])
    write_jsonl(folder / "data/medqa/dev.jsonl", [question_row(question) for question in questions[100:]])
    for name, settings in SMALL.items():
        recipe = folder / f"recipes/local/{name}.yaml"
        recipe.write_text(yaml.safe_dump(read_recipe(str(recipe)) | settings))
    for command in PREPARE:
        run(command, folder)
    return folder


def run(command: str, folder: Path) -> None:
    """Run a command as a reader would; fails with its output unless it exits with 0."""
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]


def test_commands_are_found():
    text = "x\n```bash\na b \\\n    --c 'd'  # e; needs a GPU\n# f\n\ng > h\n```\n```python\ni\n```\n"
    text += "- j\n  ```bash\n  k\n  ```\n"
    assert commands_in(text) == [("a b --c 'd'", "e; needs a GPU"), ("g > h", ""), ("k", "")]
    launched = "accelerate launch --config_file a.yaml train_grpo.py --config 'b c' --seed 2 > d 2>&1 && e"
    assert program_in(launched) == ("train_grpo", ["--config", "b c", "--seed", "2"])
    assert program_in("(python -m benchmarks.step) | tee f") == ("benchmarks.step", [])
    assert program_in("docker run pure pure eval --seed 2 > d") == ("eval_medqa", ["--seed", "2"])
    assert program_in("transformers serve runs/pure") is None
    assert program_in("python -m sglang.launch_server --model-path runs/llama") is None
    assert len(RUN) > 5
    assert len(NOT_RUN) > 10


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN, ids=[f"{name}: {command}" for command, name in RUN.items()])
def test_every_command_runs_here_or_states_what_it_needs(command, world):
    ours = command.startswith(("python ", "pure ")) and program_in(command)  # nothing else is started here by default
    assert ours, f"end the line in a remark: {', '.join(NEEDS)}"
    if command not in PREPARE:  # which ran before all others
        run(command, world)


@pytest.mark.parametrize("command", NOT_RUN, ids=[f"{name}: {command}" for command, name in NOT_RUN.items()])
def test_what_is_not_run_names_what_is_there(command, monkeypatch):
    named = [word for word in re.split(r"[\s=:'\"]", command) if word.partition("/")[0] in FOLDERS and "/" in word]
    assert not [word for word in named if not list(ROOT.glob(word))]
    if program := program_in(command):
        name, options = program
        module = import_module(f"{name}.__main__" if hasattr(import_module(name), "__path__") else name)
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [name, *options])
        monkeypatch.setattr(RecipeParser, "parse_recipe", then_stop(RecipeParser.parse_recipe))
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", then_stop(argparse.ArgumentParser.parse_args))
        with pytest.raises(Accepted):
            module.main()


def test_ci_makes_what_documents_make():
    made = " ".join(re.findall(r"^make (.*)$", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    asked = [word for command in TO_RUN if command.startswith("make ") for word in command.split()[1:]]
    assert {word for word in asked if "=" not in word} <= set(made.split())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_compiles_and_imports_what_is_there(path):
    for block in re.findall(r"^ *```python\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL):
        tree = ast.parse(textwrap.dedent(block), path.name)
        compile(tree, path.name, "exec")
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        ours = [node for node in imports if re.search(rf"\b(?:{'|'.join(PACKAGES)})\b", ast.unparse(node))]
        exec(compile(ast.Module(ours, []), path.name, "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_named_is_there(path):
    text = path.read_text()
    assert not re.findall(r"^ *```(?:sh|shell|zsh|console)\b", text, re.MULTILINE), "call it bash, and it is run"
    modules = re.findall(rf"python\s+-m\s+((?:{'|'.join(PACKAGES)})[\w.]*\w)", text)
    assert not [name for name in modules if not find_spec(name)]
    assert {*re.findall(r"`pure\s+([a-z]\w*)", text)} <= {*MODULES}
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    quoted = " ".join(re.findall(r"`([^`]+)`", prose)).split()
    named = [word for word in quoted if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:py|md|yaml)", word)]
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_site_has_a_page_for_every_document():
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    pages = re.findall(r"'([\w/]+\.md)'", str(site["nav"]))
    others = [ROOT / "CHANGELOG.md", ROOT / "examples/README.md"]
    assert sorted(pages) == sorted(str(path.relative_to(ROOT)) for path in [*DOCUMENTS, *others])


@pytest.mark.parametrize("name", ["README.md", "docs/SERVING.md"])  # cards, reports and start-up blocks have it too
def test_it_contains_the_disclaimer(name):
    assert DISCLAIMER in " ".join((ROOT / name).read_text().split())
