"""The command's table and exit codes, with and without a Hub."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modeling_pure.doctor import command as doctor
from modeling_pure.doctor.context import FAIL, PASS, SKIPPED, WARN
from modeling_pure.errors import InputError, run_script
from tests.conftest import numbers_in
from tests.data.http_server import FileServer
from tests.processes import run as start_and_wait

ROOT = Path(__file__).parents[2]
TOKEN = "hf_not_to_be_seen"
STATUS = re.compile(r"^(pass|warn|fail|skipped) +(\S+(?: \S+)*) {2,}(.*)$")


def run(*options, expect: int, **environment: str) -> tuple[dict[str, tuple[str, str]], str]:
    """Start the command; returns status and finding of each check by name, and the whole output."""
    result = start_and_wait("-m", "modeling_pure", "doctor", *options, expect=expect, **environment)
    output = result.stdout + result.stderr
    lines = [match for line in result.stdout.splitlines() if (match := STATUS.match(line))]
    return {match[2]: (match[1], match[3].strip()) for match in lines}, output


def local_hub(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process with another Hub endpoint and an empty cache."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def test_help_needs_no_recipe(tmp_path, monkeypatch, capsys):
    """Outside a clone the default recipe does not exist."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        doctor.read_context(["--help"])
    assert "--quick" in capsys.readouterr().out
    with pytest.raises(InputError, match=f"no such recipe '{doctor.RECIPE}'"):
        doctor.read_context([])


def test_a_local_recipe_passes_and_nothing_is_left_behind(recipe):
    output_dir = Path(yaml.safe_load(recipe.read_text())["output_dir"])
    checks, _ = run("--config", recipe, expect=0)
    assert {status for status, _ in checks.values()} <= {PASS, WARN}
    assert list(checks) == [
        *("torch", "packages", "GPU", "data workers", "output_dir", "disk", "monitoring", "Hub", "token", "tokenizer"),
        *("sources.finepdfs", "sources.fineweb_edu", "sources.c4", "sources.usmle"),
        *("files", "model", "forward pass", "throughput"),
    ]
    assert checks["Hub"][0] == PASS
    assert re.search(r"^2 x 64 .* [\d,]+ tokens/s.* 3,072 ", checks["throughput"][1])
    assert "40" in numbers_in(checks["sources.c4"][1])
    assert not output_dir.parent.exists()
    assert not list(recipe.parent.glob("tmp*"))


def test_without_the_hub_its_checks_are_skipped_and_a_missing_file_fails(recipe, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # does not listen, so every connection is refused
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        hub = [
            *("--tokenizer_name_or_path", "owner/tokenizer", "--sources.finepdfs.path", "owner/texts"),
            *("--sources.usmle.path", "owner/questions", "--decontaminate", "owner/questions"),
            *("--sources.c4.path", tmp_path / "gone.jsonl"),
        ]
        checks, output = run("--config", recipe, "--quick", *hub, expect=1, **local_hub(endpoint, tmp_path))
    assert checks["Hub"][0] == WARN
    assert endpoint in checks["Hub"][1]
    skipped = ["token", "tokenizer", "sources.finepdfs", "sources.usmle", "files", "decontaminate", "throughput"]
    assert [name for name, (status, _) in checks.items() if status == SKIPPED] == skipped
    assert [name for name, (status, _) in checks.items() if status == FAIL] == ["sources.c4"]
    assert re.match(rf"sources\.c4: .*'{tmp_path / 'gone.jsonl'}'", checks["sources.c4"][1])
    assert checks["model"][0] == checks["forward pass"][0] == PASS
    assert TOKEN not in output


def test_a_working_hub_is_read_as_in_training(recipe, corpus, tmp_path):
    hub = tmp_path / "hub"
    for name, file in (("texts", "c4.jsonl"), ("questions", "questions.jsonl")):
        (hub / "owner" / name).mkdir(parents=True)
        shutil.copyfile(corpus / file, hub / "owner" / name / "train.jsonl")
    (hub / "api").mkdir()
    (hub / "api" / "whoami-v2").write_text(json.dumps({"name": "somebody"}))
    server = FileServer(hub)
    options = ["--sources.c4.path", "owner/texts", "--sources.usmle.path", "owner/questions"]
    options += ["--sources.finepdfs.path", "owner/nowhere"]
    checks, output = run("--config", recipe, "--quick", *options, expect=1, **local_hub(server.url, tmp_path / "home"))
    server.stop()
    assert checks["Hub"][0] == checks["token"][0] == PASS
    assert server.url in checks["Hub"][1]
    assert "somebody" in checks["token"][1]
    assert checks["sources.c4"][0] == checks["sources.usmle"][0] == PASS
    assert checks["sources.finepdfs"][0] == FAIL
    assert re.match(r"sources\.finepdfs: .*'owner/nowhere'", checks["sources.finepdfs"][1])
    assert server.sent > 0
    assert TOKEN not in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "recipes/none.yaml"], r"--config: .*'recipes/none\.yaml'"),
        (["--lerning_rate", "1"], ".*'--lerning_rate'.*'--learning_rate'"),
        (["--preset", "huge"], "preset: .*'huge'"),
        (["--sources.c4.weight", "0.9"], r"sources: .*\b1\.7\b"),
        (["--max_seq_length", "512"], r"max_seq_length: .*\b512\b.*\b256\b"),
        (["--model_overrides", "{hiden_size: 64}"], r"model_overrides\.hiden_size: "),
        (["--validation_sources", "{c4: {path: x}}"], r"validation_sources\.c4: "),
    ],
)
def test_bad_input_is_one_line(options, message, recipe, monkeypatch, capsys):
    given = options if "--config" in options else ["--config", str(recipe), *options]
    monkeypatch.setattr(sys, "argv", ["doctor", *given])
    with pytest.raises(SystemExit) as stop:
        run_script(doctor.main, "doctor")
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert re.match(f"doctor: error: {message}", output.err)
    assert output.err.count("\n") == 1


def test_bad_input_ends_the_process_with_2_and_trl_is_not_needed(recipe):
    python = [sys.executable, "-X", "importtime", "-m"]
    command = [*python, "modeling_pure", "doctor", "--config", recipe, "--max_step", "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    imports, output = [], []
    for line in result.stderr.splitlines():
        (imports if line.startswith("import time:") else output).append(line)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = output
    assert re.match(r"pure doctor: error: .*'--max_step'.*'--max_steps'", line)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in imports}
    assert "transformers" in imported
    assert "trl" not in imported


def test_the_recipe_of_the_real_run_is_the_default(monkeypatch):
    monkeypatch.chdir(ROOT)
    context = doctor.read_context(["--quick"])
    assert context.quick
    assert context.parameters == 401_227_776
    assert context.tokens == 61_035 * 32_768
