"""Two processes take the steps of one: the same rows, and so the same losses, gradients and weights, DDP and FSDP2.

Rows are packed beforehand, which makes them the same for any number of processes. `accelerate launch --cpu
--num_processes 2` would start one process without a word; torchrun starts two, and each test makes sure of it.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.scripts.conftest import metrics, run, run_two

SHARDED = "tests/scripts/fsdp_on_cpu.py"
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "PureDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


@pytest.fixture(scope="module")
def options(pretrain_recipe, tmp_path_factory) -> list[str]:
    """A recipe on packed rows, with validation rows that do not divide among the processes."""
    folder = tmp_path_factory.mktemp("packed") / "rows"
    run("-m", "modeling_pure.data.pack", "--config", pretrain_recipe, "--out", folder, "--rows", "64")
    return ["--config", str(pretrain_recipe), "--packed_dir", str(folder), "--per_device_eval_batch_size", "3"]


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory) -> Path:
    """The run of one process: 2 rows in a pass, 2 passes in a step."""
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
    run_two(*options, "--output_dir", tmp_path, port=29641)
    assert_same_run(alone, tmp_path)


@pytest.mark.parametrize("setting", [("--optimizer", "muon"), ("--medqa_dev_questions", "4")])
def test_what_sharded_weights_cannot_do_is_refused(options, tmp_path, setting):
    said = run_two(*options, *setting, "--output_dir", tmp_path, port=29643, script=SHARDED, expect=1, **FSDP2)
    assert f"error: {setting[0][2:]}: " in said and not any(tmp_path.iterdir())


def test_fsdp2_is_the_run_of_one_process_and_goes_on(options, alone, tmp_path):
    assert "sharded (FSDP)" in run_two(*options, "--output_dir", tmp_path, port=29642, script=SHARDED, **FSDP2)
    assert_same_run(alone, tmp_path)
    for left in ("checkpoint-12", "model.safetensors", "trainer_state.json"):
        path = tmp_path / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "checkpoint-8" in run_two(*options, "--output_dir", tmp_path, port=29642, script=SHARDED, **FSDP2)
    assert_same_run(alone, tmp_path)
