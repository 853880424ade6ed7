"""Runs that push to a Hub and resume from it, and failures of Hub and network."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modeling_pure.console import DISCLAIMER
from modeling_pure.errors import run_script
from tests.data.http_server import Failure
from tests.hub_server import HubServer, environment
from tests.processes import ROOT, run

REPOSITORY = "user/pure"
LOAD = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
try:
    AutoConfig.from_pretrained("user/pure", token=False)
    raise SystemExit("a private repository was read without a token")
except OSError:
    pass
model = AutoModelForCausalLM.from_pretrained("user/pure", trust_remote_code=True, revision=sys.argv[1])
AutoTokenizer.from_pretrained("user/pure", revision=sys.argv[1])
assert "modeling_pure" not in sys.modules, "not the code that was pushed"
model.save_pretrained(sys.argv[2])
"""
IMPATIENT = """
import time
from modeling_pure.training import hub
from train_pretrain import main, run_script
hub.START_SECONDS = hub.RETRY_SECONDS = 1.0
sleep, time.sleep = time.sleep, lambda seconds: sleep(min(seconds, 0.01))
run_script(main, "train_pretrain.py")
"""


@pytest.fixture
def hub():
    """An empty Hub."""
    server = HubServer()
    yield server
    server.stop()


def options(recipe: Path, folder: Path, **more: str) -> list[str]:
    """The command line of a run that is pushed."""
    given = {"output_dir": folder, "push_to_hub": "true", "hub_model_id": REPOSITORY, "hub_strategy": "checkpoint"}
    pairs = {**given, **more}.items()
    return ["--config", str(recipe), *(str(part) for name, value in pairs for part in (f"--{name}", value))]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@pytest.fixture(scope="module")
def pushed(pretrain_recipe, tmp_path_factory) -> tuple[HubServer, Path]:
    """A Hub with a private repository of a run that lost connections while it was pushed, and the run's folder."""
    server, folder = HubServer(), tmp_path_factory.mktemp("pushed") / "run"
    lost = {"PUT": Failure(cut=1000), "commit": Failure(drop=True), "branch": Failure(503)}

    def fails(method: str, path: str) -> Failure | None:
        return lost.pop(next((key for key in lost if key in (method, *path.split("/"))), ""), None)

    server.fails = fails
    line = options(pretrain_recipe, folder, hub_private_repo="true", save_total_limit="1")
    said = run("train_pretrain.py", *line, **environment(server.url, str(folder.parent / "home")))
    assert not lost
    assert f"{server.url}/{REPOSITORY}" in said.stdout
    yield server, folder
    server.stop()


def test_main_has_the_model_and_the_state_to_resume_from(pushed):
    hub, folder = pushed
    files = hub.files(REPOSITORY)
    state = {path: content for path, content in files.items() if path.startswith("last-checkpoint/")}
    assert state == {
        f"last-checkpoint/{file.name}": file.read_bytes() for file in (folder / "checkpoint-12").iterdir()
    }
    for name in (
        "model.safetensors",
        "README.md",
        "curves.png",
        "metrics.jsonl",
        "modeling_pure.py",
        "tokenizer.json",
    ):
        assert files[name] == (folder / name).read_bytes()
    others = files.keys() - state.keys()
    assert not [path for path in others if path.endswith((".bin", ".pt", ".pth", ".yaml"))]
    assert not [path for path in others if "/" in path]
    sent = [path for method, path in hub.requests if method == "PUT"]
    assert len(sent) == len({*sent}) + 1, "a large file was sent twice, beside the one whose connection was lost"


def test_each_checkpoint_is_a_branch_of_weights_alone(pushed):
    hub, folder = pushed
    branches = {*hub.repositories[REPOSITORY].branches} - {"main"}
    assert "checkpoint-12" in branches <= {"checkpoint-4", "checkpoint-8", "checkpoint-12"}
    for branch in branches:
        files = hub.files(REPOSITORY, branch)
        assert not [path for path in files if "/" in path or path.endswith((".pt", ".pth", ".bin"))]
        assert DISCLAIMER in " ".join(files["README.md"].decode().split())
        assert f"step {branch.removeprefix('checkpoint-')}" in files["README.md"].decode()
    weights = (folder / "checkpoint-12/model.safetensors").read_bytes()
    assert hub.files(REPOSITORY, "checkpoint-12")["model.safetensors"] == weights


def test_anybody_with_the_right_loads_a_revision_and_the_second_time_from_the_cache(pushed, tmp_path):
    hub, folder = pushed
    code, home = tmp_path / "load.py", environment(hub.url, str(tmp_path / "home"))
    code.write_text(LOAD)
    run(code, "checkpoint-12", tmp_path / "loaded", **home)
    assert_same_weights(tmp_path / "loaded", folder)
    before = len(hub.requests)
    run(code, "checkpoint-12", tmp_path / "again", **home)
    assert not [path for method, path in hub.requests[before:] if method == "GET" and path.endswith(".safetensors")]


def test_grpo_loads_from_and_pushes_to_the_hub_and_merges_adapters(pushed, grpo_recipe, tmp_path):
    hub, _ = pushed
    more = {"hub_model_id": "user/grpo", "model_name_or_path": REPOSITORY, "lora_rank": "2"}
    line = options(grpo_recipe, tmp_path / "run", **more)
    said = run("train_grpo.py", *line, **environment(hub.url, str(tmp_path / "home"))).stdout
    assert f"{hub.url}/user/grpo" in said
    files = hub.files("user/grpo")
    assert files["model.safetensors"] == (tmp_path / "run/model.safetensors").read_bytes()
    assert "base_model: user/pure" in files["README.md"].decode()
    assert "last-checkpoint/optimizer.pt" in files
    assert "adapter_config.json" in hub.files("user/grpo", "checkpoint-4")
    assert not [path for path in files if path.startswith("adapter_")], "transformers would look for what it adapts"
    assert not [path for path in files if "completions" in path], "texts of the questions are nobody's to publish"


def test_another_machine_resumes_from_the_hub(pretrain_recipe, pretrained, hub, tmp_path):
    stuck, home = threading.Event(), environment(hub.url, str(tmp_path / "home"))

    def fails(method: str, path: str) -> None:
        """Stop answering once the first checkpoint's state has arrived."""
        if any(path.endswith("commit/main") for _, path in hub.requests[:-1]):
            stuck.set()
            threading.Event().wait(60)

    hub.fails = fails
    command = [sys.executable, "train_pretrain.py", *options(pretrain_recipe, tmp_path / "first")]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **home}, stdout=subprocess.DEVNULL)
    while not stuck.wait(1):
        assert process.poll() is None
    process.kill()
    process.wait()
    hub.fails = lambda method, path: None
    said = run("train_pretrain.py", *options(pretrain_recipe, tmp_path / "second"), **home).stdout
    assert re.search(rf"\bcheckpoint-4\b.*{REPOSITORY}", said)
    assert_same_weights(tmp_path / "second", pretrained)
    assert not (tmp_path / "second/_from_hub").exists()
    # The run has ended: a third machine has nothing left to train.
    # A Hub that is busy for longer than its library retries is not mistaken for an empty one.
    busy = [Failure(503)] * 8
    hub.fails = lambda method, path: busy.pop() if busy and "/resolve/" in path else None
    third = options(pretrain_recipe, tmp_path / "third", resume_from_checkpoint=f"hf://{REPOSITORY}")
    assert re.search(rf"\bcheckpoint-12\b.*{REPOSITORY}", run("-c", IMPATIENT, *third, **home).stdout)
    assert not busy
    assert_same_weights(tmp_path / "third", pretrained)
    # The local state is newer than the Hub's: the same command does not go back.
    before = len(hub.requests)
    again = run("train_pretrain.py", *third, "--max_steps", "16", "--allow_recipe_change", "true", **home).stdout
    assert "third/checkpoint-12" in again
    assert not [path for method, path in hub.requests[before:] if method == "GET" and path.endswith("/optimizer.pt")]


def test_an_unreachable_hub_does_not_stop_a_run_and_is_pushed_to_later(pretrain_recipe, pretrained, hub, tmp_path):
    home = environment(hub.url, str(tmp_path / "home"))

    def fails(method: str, path: str) -> Failure | None:
        return Failure(503) if "/commit/" in path else None  # which the Hub's library tries once

    hub.fails = fails
    line = options(pretrain_recipe, tmp_path / "run", hub_strategy="every_save")
    said = run("-c", IMPATIENT, *line, expect=3, **home)
    assert re.search(rf"\bcheckpoint-12\b.*{REPOSITORY}: ", said.stderr)
    assert f"error: push_to_hub: {REPOSITORY}: " in said.stderr
    assert_same_weights(tmp_path / "run", pretrained)
    hub.fails = lambda method, path: None
    assert f"{hub.url}/{REPOSITORY}" in run("train_pretrain.py", *line, **home).stdout
    assert hub.files(REPOSITORY)["model.safetensors"] == (tmp_path / "run/model.safetensors").read_bytes()


REFUSED = {
    "no token": ({}, {"HF_TOKEN": ""}, "push_to_hub: "),
    "wrong token": ({}, {"HF_TOKEN": "hf_nobodys"}, "push_to_hub: "),
    "may only read": ({}, {"HF_TOKEN": "hf_reads"}, "push_to_hub: "),
    "of another": ({"hub_model_id": "somebody/pure"}, {}, r"hub_model_id: 'somebody/pure' .*\buser or lab\b"),
    "no rights": ({"hub_model_id": "lab/pure"}, {}, "hub_model_id: 'lab/pure': "),
    "no owner": ({"hub_model_id": "pure"}, {}, "hub_model_id: .*'pure'"),
    "no name": ({"hub_model_id": "user/a b"}, {}, "hub_model_id: 'user/a b': "),
    "all": ({"hub_strategy": "all_checkpoints"}, {}, r"hub_strategy: .*\['end', 'every_save', 'checkpoint'\]"),
    "nothing there": ({"resume_from_checkpoint": "hf://user/none"}, {}, "resume_from_checkpoint: .*'hf://user/none'"),
}


def main() -> None:
    """Start each run of the standard input in this process, one after the other; prints exit code and error."""
    import contextlib
    import io

    import train_pretrain

    for arguments, variables in json.load(sys.stdin):
        sys.argv, error = ["train_pretrain.py", *arguments], io.StringIO()
        os.environ |= variables
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            try:
                run_script(train_pretrain.main, "train_pretrain.py")
            except SystemExit as stop:
                code = stop.code
        print(json.dumps([code, error.getvalue()]), flush=True)


def test_a_run_that_may_not_push_does_not_start(pretrain_recipe, hub, tmp_path):
    hub.create("lab/pure", owner="lab")
    home, right = environment(hub.url, str(tmp_path / "home")), {"HF_TOKEN": "hf_writes"}
    jobs = [
        (options(pretrain_recipe, tmp_path / "run", **more), {**right, **variables})
        for more, variables, _ in REFUSED.values()
    ]
    result = subprocess.run(
        [sys.executable, "-m", "tests.scripts.test_pretrain_hub"],
        input=json.dumps(jobs),
        cwd=ROOT,
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        check=True,
    )
    ends = [json.loads(line) for line in result.stdout.splitlines()]
    for (code, error), (_, _, expected) in zip(ends, REFUSED.values(), strict=True):
        assert code == 2, error
        assert re.match(rf"train_pretrain\.py: error: {expected}", error), error
        assert error.count("\n") == 1
        assert "hf_" not in error.replace("hf://", "")
    assert len({error for _, error in ends}) == len(REFUSED)
    assert not (tmp_path / "run").exists()
    assert [*hub.repositories] == ["lab/pure"]


def test_a_run_that_needs_the_hub_does_not_start_offline(pretrain_recipe, hub, tmp_path):
    hub.stop()
    line, home = options(pretrain_recipe, tmp_path / "run"), environment(hub.url, str(tmp_path / "home"))
    stderr = run("-c", IMPATIENT, *line, expect=2, **home).stderr
    assert re.search(f"error: push_to_hub: .*{hub.url}: ", stderr)
    offline = home | {"HF_HUB_OFFLINE": "1"}
    assert "HF_HUB_OFFLINE" in run("train_pretrain.py", *line, expect=2, **offline).stderr
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    main()
