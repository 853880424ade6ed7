"""The command line `pure`: its page, the help of each command, and what it refuses."""

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pure
from tests.processes import run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def start(monkeypatch, capsys):
    """Runs `pure` in this process; returns its exit code, stdout and stderr."""

    def start(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pure", *words])
        with pytest.raises(SystemExit) as stop:
            pure.main()
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return start


def test_the_page_has_a_line_for_each_command_and_needs_no_torch():
    command = [sys.executable, "-X", "importtime", "pure.py", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    starts = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")]
    assert [starts.count(name) for name in pure.MODULES] == [1] * len(pure.MODULES)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "difflib" in imported
    assert not imported & {"torch", "transformers", "modeling_pure"}


def test_without_a_command_the_page_is_shown_and_the_exit_code_is_2(start):
    code, page, _ = start()
    assert code == 2
    assert page == start("--help")[1] == start("-h")[1]


@pytest.mark.parametrize("name", pure.MODULES)
def test_every_command_explains_its_options(name, start, monkeypatch):
    parsers = []
    print_help = argparse.ArgumentParser.print_help
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda self: (parsers.append(self), print_help(self)))
    code, page, _ = start(name, "--help")
    (parser,) = parsers
    assert code == 0
    assert page.startswith(f"usage: pure {name} ")
    assert len(parser._actions) > 1
    assert not [action.dest for action in parser._actions if not (action.help or "").strip()]


@pytest.mark.parametrize(("word", "nearest"), [("pretrian", "pretrain"), ("evaluate", "eval"), ("--version", "")])
def test_an_unknown_command_is_refused_with_the_nearest(word, nearest, start):
    code, out, line = start(word)
    assert (code, out, line.count("\n")) == (2, "", 1)
    assert f"'{word}'" in line
    assert f"'{nearest}'" in line or not nearest


def test_a_package_that_is_missing_is_named(start, monkeypatch):
    monkeypatch.setitem(pure.MODULES, "grpo", "not_installed.at_all")
    code, out, line = start("grpo", "--help")
    assert (code, out, line.count("\n")) == (2, "", 1)
    assert "'not_installed'" in line


def test_the_package_run_as_a_module_is_the_same():
    result = run("-m", "modeling_pure", "pretrain", "--max_step", "2", expect=2)
    assert result.stdout == ""
    assert result.stderr.startswith("pure pretrain: error: ")
    assert "'--max_steps'" in result.stderr


def test_all_modules_are_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["scripts"] == {"pure": "pure:main"}
    outside = {module for module in pure.MODULES.values() if not module.startswith("modeling_pure.")}
    assert {*settings["tool"]["setuptools"]["py-modules"]} == {"pure", *outside}
