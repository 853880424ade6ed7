"""Two processes take the steps of one: the same rows, and so the same losses, gradients and weights, DDP and FSDP2.

Rows are packed beforehand, which makes them the same for any number of processes. They are started by the files that
users start them with; `accelerate launch --cpu --num_processes 2` would start one without a word, so each test makes
sure that there are two.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from modeling_pure.training.checkpoint import write_file_list
from tests.processes import ROOT, free_port, run
from tests.scripts.conftest import fsdp2_goes_on, metrics, ranks_resume_on_cpus, run_ranks, run_two
from tests.scripts.runs import launches, same_weights, start_from

SHARDED = "tests/scripts/fsdp_on_cpu.py"


@pytest.fixture(scope="module")
def options(pretrain_recipe, tmp_path_factory) -> list[str]:
    """A recipe on packed rows that states the tokens of a step; validation rows do not divide among the processes."""
    folder = tmp_path_factory.mktemp("packed") / "rows"
    run("-m", "modeling_pure", "pretokenize", "--config", pretrain_recipe, "--out", folder, "--sequences", "64")
    recipe = yaml.safe_load(pretrain_recipe.read_text())
    del recipe["gradient_accumulation_steps"]
    recipe |= {"tokens_per_step": 256, "pretokenized_dir": str(folder), "per_device_eval_batch_size": 3}
    stated = folder.with_name("recipe.yaml")
    stated.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return ["--config", str(stated)]


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory) -> Path:
    """The run of one process: 2 rows in a pass, 2 passes in a step, where each of two processes has one."""
    folder = tmp_path_factory.mktemp("alone")
    run("train_pretrain.py", *options, "--output_dir", folder)
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    """To fp32 rounding: the ranks' gradients are added in another order than the passes' of one process."""
    lines = [[line for line in metrics(folder) if "loss" in line or "eval_loss" in line] for folder in (one, other)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    names = [name for name in lines[0][0] if name in ("loss", "grad_norm", "learning_rate") or "/" in name]
    assert len(names) > 3
    for first, second in zip(*lines, strict=True):
        for name in set(first) & {*names, "eval_loss", "eval_loss/c4", "eval_bits_per_byte/c4"}:
            assert first[name] == pytest.approx(second[name], rel=2e-5), (name, first["step"])
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0, atol=2e-4)


def test_ddp_is_the_run_of_one_process(options, alone, tmp_path):
    run_two(*options, "--output_dir", tmp_path)
    assert_same_run(alone, tmp_path)


@pytest.mark.parametrize("setting", [("--optimizer", "muon"), ("--medqa_dev_questions", "4")])
def test_what_sharded_weights_cannot_do_is_refused(options, tmp_path, setting):
    said = run_two(*options, *setting, "--output_dir", tmp_path, script=SHARDED, machine="fsdp2", expect=1)
    assert f"error: {setting[0][2:]}: " in said
    assert not any(tmp_path.iterdir())


@fsdp2_goes_on
def test_fsdp2_is_the_run_of_one_process_and_goes_on(options, alone, tmp_path):
    assert "FSDP" in run_two(*options, "--output_dir", tmp_path, script=SHARDED, machine="fsdp2")
    assert_same_run(alone, tmp_path)
    for left in ("checkpoint-12", "model.safetensors", "trainer_state.json"):
        path = tmp_path / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "checkpoint-8" in run_two(*options, "--output_dir", tmp_path, script=SHARDED, machine="fsdp2")
    assert_same_run(alone, tmp_path)


def train_two(kind: str, *options: object) -> None:
    """Train on two processes: `ddp`, or FSDP2 with that state dict."""
    if kind == "ddp":
        run_ranks("train_pretrain.py", *options)
        return
    fsdp = {"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": f"{kind}_STATE_DICT"}
    fsdp |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "PureDecoderLayer"}
    said = run_ranks(SHARDED, *options, ACCELERATE_USE_FSDP="true", **fsdp)
    assert "(FSDP)" in said[0]


@pytest.fixture(scope="module")
def sharded(options, tmp_path_factory) -> Path:
    """A run whose weights are sharded, with accelerate's own choice of a state dict."""
    folder = tmp_path_factory.mktemp("sharded")
    train_two("SHARDED", *options, "--output_dir", folder)
    return folder


@pytest.mark.slow
@fsdp2_goes_on
def test_sharded_state_ends_with_a_model_and_leaves_the_checkpoints_of_one_process(alone, sharded):
    assert_same_run(alone, sharded)
    for step in (4, 8, 12):
        one, other = ({file.name: file for file in (run / f"checkpoint-{step}").iterdir()} for run in (alone, sharded))
        assert {name for name in one if "rng_state" not in name} == {name for name in other if "rng_state" not in name}
        states = [torch.load(files["optimizer.pt"], weights_only=True) for files in (one, other)]
        assert states[0]["param_groups"] == states[1]["param_groups"]
        for number, state in states[0]["state"].items():
            for name, value in state.items():
                torch.testing.assert_close(states[1]["state"][number][name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@fsdp2_goes_on
@ranks_resume_on_cpus
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("alone", "SHARDED"),
        ("alone", "FULL"),
        ("alone", "ddp"),
        ("sharded", "one"),
        ("sharded", "ddp"),
        ("sharded", "FULL"),
    ],
)
def test_a_checkpoint_goes_on_under_other_kinds(before, after, alone, options, train_here, tmp_path, request):
    start_from(request.getfixturevalue(before), tmp_path, 8)
    command = [*options, "--output_dir", tmp_path]
    if after == "one":
        train_here(*command)
    else:
        train_two(after, *command)
    assert launches(tmp_path)[-1]["from_step"] == 8
    assert_same_run(alone, tmp_path)


@pytest.mark.slow
@fsdp2_goes_on
@ranks_resume_on_cpus
def test_a_run_that_stopped_after_its_last_step_ends_with_its_model(sharded, options, tmp_path):
    start_from(sharded, tmp_path, 12)
    train_two("SHARDED", *options, "--output_dir", tmp_path)
    assert same_weights(sharded, tmp_path)


@pytest.mark.parametrize("left", ["optimizer.bin", "global_step4/states.pt"], ids=["former FSDP", "DeepSpeed"])
def test_a_checkpoint_without_an_optimizer_of_ours_is_refused(left, options, alone, train_here, tmp_path):
    """As DeepSpeed writes it, and FSDP before its checkpoints were those of one process."""
    folder = start_from(alone, tmp_path / "run", 4) / "checkpoint-4"
    (folder / left).parent.mkdir(exist_ok=True)
    (folder / "optimizer.pt").rename(folder / left)
    write_file_list(folder)
    before = sorted(tmp_path.rglob("*"))
    _, line = train_here(*options, "--output_dir", tmp_path / "run", expect=2)
    assert re.search(r"error: resume_from_checkpoint: .*checkpoint-4\b", line.splitlines()[-1])
    assert sorted(tmp_path.rglob("*")) == before


def test_two_machines_are_the_run_of_one_process(options, alone, tmp_path):
    """Two launchers that meet by address, as on two machines, of one process each."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "accelerate_configs/multi_node.yaml",
    ]
    command += [
        "--num_machines",
        "2",
        "--num_processes",
        "2",
        "--main_process_port",
        str(free_port()),
        "--machine_rank",
    ]
    script = ["train_pretrain.py", *options, "--output_dir", str(tmp_path / "run")]
    with (tmp_path / "log").open("w") as log:
        machines = [
            subprocess.Popen(
                [*command, rank, *script],
                cwd=ROOT,
                env={**os.environ, "ACCELERATE_USE_CPU": "true"},
                stdout=log,
                stderr=log,
            )
            for rank in "01"
        ]
        ends = [machine.wait(300) for machine in machines]
    said = (tmp_path / "log").read_text()
    assert ends == [0, 0], said[-3000:]
    assert [launch["processes"] for launch in launches(tmp_path / "run")] == [2]
    assert_same_run(alone, tmp_path / "run")
