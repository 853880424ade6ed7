"""Pretraining from the command line: its files, and resuming without loss."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import eval_medqa
import modeling_pure  # noqa: F401  registers the model type
import train_grpo
import train_pretrain
from modeling_pure.console import DISCLAIMER
from modeling_pure.errors import InputError
from tests.conftest import numbers_in
from tests.processes import ROOT, free_port, run
from tests.scripts.conftest import metrics, ranks_resume_on_cpus
from tests.scripts.runs import launches, same_weights


@pytest.mark.parametrize("script", [train_pretrain, train_grpo, eval_medqa])
def test_a_script_takes_its_arguments_from_a_caller(script):
    with pytest.raises(InputError, match="'--nonsense"):
        script.main(["--nonsense", "1"])


def test_a_run_trains_outside_the_main_thread(pretrain_recipe, tmp_path):
    """As on Ray; only the main thread may listen to signals."""
    options = ["--config", str(pretrain_recipe), "--max_steps", "1", "--output_dir", str(tmp_path)]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train_pretrain.main, options).result()
    assert (tmp_path / "model.safetensors").exists()


def test_a_run_leaves_a_model_curves_and_a_card(pretrained):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(pretrained), AutoTokenizer.from_pretrained(pretrained)
    assert type(model).__name__ == "PureForCausalLM"
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    card = (pretrained / "README.md").read_text()
    assert DISCLAIMER in card
    assert "not-for-clinical-use" in card
    assert (pretrained / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in pretrained.glob("*.py")} == {
        "attention_pure.py",
        "configuration_pure.py",
        "loss_pure.py",
        "modeling_pure.py",
    }


def test_the_run_follows_its_recipe(pretrained):
    lines = metrics(pretrained)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.3
    assert [line["step"] for line in lines if "eval_loss" in line][:3] == [4, 8, 12]
    assert lines[-1]["step"] == 12
    assert [line["tokens"] for line in lines if "tokens" in line][-1] == 12 * 2 * 2 * 64
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert max(rates) == 0.003
    assert min(rates[3:]) >= 3e-5
    assert sorted(path.name for path in pretrained.glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-4",
        "checkpoint-8",
    ]


def test_the_same_command_after_the_end_changes_nothing(pretrained, pretrain_recipe):
    before = (pretrained / "model.safetensors").read_bytes()
    run("train_pretrain.py", "--config", pretrain_recipe, "--output_dir", pretrained)
    assert (pretrained / "model.safetensors").read_bytes() == before
    assert len([line for line in metrics(pretrained) if "loss" in line]) == 12


def test_a_run_killed_before_its_final_save_is_finished(pretrained, pretrain_recipe, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pretrained, folder)
    (folder / "model.safetensors").unlink(), (folder / "trainer_state.json").unlink()
    run("train_pretrain.py", "--config", pretrain_recipe, "--output_dir", folder)
    assert same_weights(pretrained, folder)
    assert len([line for line in metrics(folder) if "loss" in line]) == 12


def test_documents_can_be_separated(pretrain_recipe, pretrained, tmp_path):
    run(
        "train_pretrain.py",
        "--config",
        pretrain_recipe,
        "--output_dir",
        tmp_path,
        "--document_mask",
        "--max_steps",
        "4",
    )
    apart, together = metrics(tmp_path), metrics(pretrained)
    assert apart[0]["loss"] != together[0]["loss"]


@ranks_resume_on_cpus
def test_two_processes_share_the_work_and_one_resumes_it(pretrain_recipe, sources, tmp_path):
    # `accelerate launch --cpu --num_processes 2` silently starts one process; torchrun starts two.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    options = ["--config", pretrain_recipe, "--output_dir", tmp_path, "--gradient_accumulation_steps", "1"]
    for steps in ("4", "8"):  # the second command resumes both ranks
        result = subprocess.run(
            list(map(str, [*launcher, "train_pretrain.py", *options, "--max_steps", steps])),
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "CI": "true", "ACCELERATE_USE_CPU": "true"},
        )
        assert result.returncode == 0, result.stderr[-3000:]
    # Then one process resumes what both had read, at twice the accumulation.
    output = run(
        "train_pretrain.py", "--config", pretrain_recipe, "--output_dir", tmp_path, "--max_steps", "10"
    ).stdout
    assert [(launch["processes"], launch["from_step"]) for launch in launches(tmp_path)] == [(2, 0), (2, 4), (1, 8)]
    # Ranks and workers before and after.
    assert ["2", "1", "1", "1"] in [numbers_in(line) for line in output.splitlines()]
    lines = [line for line in metrics(tmp_path) if "tokens" in line]
    assert [line["tokens"] for line in lines] == [step * 2 * 2 * 64 for step in range(1, 11)]
    for line in lines:
        tokens = {name: line[f"tokens/{name}"] for name in sources}
        assert sum(tokens.values()) == line["tokens"]
        assert all(abs(tokens[name] - sources[name]["weight"] * line["tokens"]) <= 3 * 64 for name in sources)


def test_a_run_finishes_without_checkpoints_and_with_a_list_of_one_path(
    train_here, pretrain_recipe, sources, tmp_path
):
    (exam,) = [name for name, source in sources.items() if source.get("format") == "medqa"]
    paths = f"--sources.{exam}.path", json.dumps([sources[exam]["path"]])
    short = "--max_steps", 1, "--warmup_steps", 0, "--eval_steps", 1, "--save_strategy", "no"
    options = *short, *paths, "--medqa_dev_questions", 2, "--dataloader_num_workers", 0, "--output_dir", tmp_path
    assert "best checkpoint" in train_here("--config", pretrain_recipe, *options)[0]
    card = (tmp_path / "README.md").read_text()
    assert "| best checkpoint | none |" in card
    assert Path(sources[exam]["path"]).name in card
