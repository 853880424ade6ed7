"""GRPO from the command line: rewards, budget, and exact resuming."""

import re

import pandas
import pytest

from modeling_pure.console import DISCLAIMER
from modeling_pure.data.arguments import parse_source
from modeling_pure.data.opening import split_questions
from modeling_pure.grpo.arguments import GRPOScriptArguments
from modeling_pure.grpo.questions import read_splits
from modeling_pure.grpo.report import INERT
from modeling_pure.medqa.questions import read_questions, split_of
from tests.processes import run
from tests.scripts.conftest import kill_once_written, metrics
from tests.scripts.runs import same_weights


@pytest.fixture(scope="module")
def trained(grpo_recipe, tmp_path_factory):
    """A finished, uninterrupted run, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "grpo"
    return folder, run("train_grpo.py", "--config", grpo_recipe, "--output_dir", folder).stdout


def test_the_start_up_block_shows_which_refinements_are_active(trained):
    _, printed = trained
    printed = " ".join(printed.split())
    assert re.search(r"\b2 \w+ x 4 \w+ = 8\b.*\b16 \w+, 2 \w+", printed)
    assert DISCLAIMER in printed
    assert INERT not in printed


def test_the_reward_is_the_weighted_sum_and_is_logged(trained):
    folder, _ = trained
    lines = [line for line in metrics(folder) if "reward" in line]
    assert lines
    for line in lines:
        correct, penalty = line["rewards/correct/mean"], line["rewards/length_penalty/mean"]
        assert line["reward"] == pytest.approx(correct - 0.01 * penalty, abs=1e-6)
    assert (folder / "curves.png").exists()
    assert DISCLAIMER in (folder / "README.md").read_text()


def test_a_killed_run_resumes_exactly(trained, grpo_recipe, tmp_path):
    folder, _ = trained
    command = ["train_grpo.py", "--config", grpo_recipe, "--output_dir", tmp_path]
    kill_once_written(tmp_path / "checkpoint-2" / "trainer_state.json", *command)
    assert not (tmp_path / "model.safetensors").exists()
    run(*command)
    assert same_weights(folder, tmp_path)
    timeless = [
        [
            {name: value for name, value in line.items() if "time" not in name and "per_second" not in name}
            for line in each
        ]
        for each in (metrics(folder), metrics(tmp_path))
    ]
    assert timeless[0] == timeless[1]  # losses, rewards, token counts, accuracies
    asked = [pandas.read_parquet(each / "completions/completions_00004.parquet") for each in (folder, tmp_path)]
    assert asked[0].equals(asked[1])


def test_training_uses_no_dev_question_and_the_holdout_is_excluded_from_pretraining(corpus):
    path = str(corpus / "questions.jsonl")
    asked, dev = read_splits(GRPOScriptArguments(), read_questions("questions", path))
    assert {split_of(question) for question in asked} == {"train"}
    assert {split_of(question) for question in dev} == {"dev"}
    kept, _ = read_splits(GRPOScriptArguments(grpo_holdout=0.3, holdout_only=True), read_questions("questions", path))
    assert {split_of(question, 0.3) for question in kept} == {"holdout"}
    source = parse_source("sources.usmle", {"path": path, "weight": 1, "format": "medqa"})
    read, *_ = split_questions(source, grpo_holdout=0.3)
    assert read
    assert not {question.digest for question in read} & {question.digest for question in kept}
    assert {question.digest for question in [*read, *kept]} == {question.digest for question in asked}


def test_the_token_budget_ends_the_run(grpo_recipe, tmp_path):
    command = ["train_grpo.py", "--config", grpo_recipe, "--output_dir", tmp_path, "--max_tokens", "20"]
    run(*command)
    lines = metrics(tmp_path)
    assert max(line["step"] for line in lines) < 4
    assert max(line.get("generated_tokens", 0) for line in lines) >= 20

    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    run(*command)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert metrics(tmp_path) == lines


def test_refinements_without_effect_are_marked(grpo_recipe, tmp_path):
    options = ["--steps_per_generation", "2", "--max_steps", "1", "--beta", "0.0", "--save_steps", "1"]
    printed = run("train_grpo.py", "--config", grpo_recipe, "--output_dir", tmp_path, *options).stdout
    assert printed.count(INERT) == 2
