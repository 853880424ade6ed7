"""Files named in deploy/ and its guide exist, and the commands in them parse."""

import re
import subprocess

import pytest

from tests.deploy.conftest import ROOT, SHELLCHECK, TEXTS, accepted, commands_in

COMMANDS = [(path.name, command) for path in TEXTS for command in commands_in(path.read_text())]
SHELL = [path for path in TEXTS if path.suffix in (".sbatch", ".sh")]


def test_commands_are_found():
    text = "#   sbatch a.sbatch \\\n#       train_grpo.py --config b.yaml --a.b '*.c'  # x\ntrain_grpo.py, --config\n"
    text += "#   docker run pure pure eval --seed 1\n"
    grpo = ["train_grpo.py", "--config", "b.yaml", "--a.b", "*.c"]
    assert commands_in(text) == [grpo, ["eval", "--seed", "1"]]
    assert len(COMMANDS) > 5
    assert {command[0] for _, command in COMMANDS} >= {"train_pretrain.py", "train_grpo.py"}


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(COMMANDS)])
def test_every_command_is_accepted(name, command, monkeypatch):
    assert accepted(command, monkeypatch)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_file_that_is_named_is_there(path):
    named = re.findall(
        r"\b(?:deploy|recipes|accelerate_configs|docs|modeling_pure|tests)/[\w./-]*\w", path.read_text()
    )
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path):
    result = subprocess.run([SHELLCHECK, "--shell=bash", path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
