"""The files and output of a GRPO run: evaluation, preflight, completions, adapters, baseline, two processes."""

import json
import re
import shutil

import pandas
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import eval_medqa
import train_grpo
from modeling_pure.errors import InputError
from modeling_pure.export import find_folder
from modeling_pure.training.checkpoint import write_file_list
from tests.conftest import numbers_in
from tests.processes import run
from tests.scripts.conftest import metrics, ranks_resume_on_cpus, run_ranks, run_two
from tests.scripts.runs import contents, launches


@pytest.fixture
def grpo_here(train_here, grpo_recipe, tmp_path):
    """GRPO in this process, in a folder of its own."""

    def grpo_here(*options, folder=tmp_path, **more):
        command = ["--config", grpo_recipe, "--output_dir", folder, *options]
        return train_here(*command, script=train_grpo, **more)[0]

    return grpo_here


def weights_of(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_dev_split_chooses_the_checkpoint_that_the_run_ends_with(grpo_here, tmp_path):
    printed = grpo_here(
        "--load_best_model_at_end",
        "true",
        "--entropy_coef",
        "0.1",
        "--learning_rate",
        "0.05",
        "--save_total_limit",
        "2",
    )
    lines = [line for line in metrics(tmp_path) if "eval_medqa_accuracy" in line]
    assert [line["step"] for line in lines] == [2, 4]
    assert all("eval_rewards/correct/mean" in line and "eval_medqa/parse_rate" in line for line in lines)
    best = max(lines, key=lambda line: line["eval_medqa_accuracy"])["step"]  # the first if tied
    assert equal(weights_of(tmp_path), weights_of(tmp_path / f"checkpoint-{best}"))
    accuracy = max(line["eval_medqa_accuracy"] for line in lines)
    assert re.search(rf"\bstep {best}\b.*\b{accuracy:.3f}\b", printed)
    assert re.search(r"\beval_medqa_accuracy .*\b13\b", printed)


def test_the_same_command_again_keeps_the_best_weights(grpo_here, tmp_path):
    options = ["--load_best_model_at_end", "true", "--entropy_coef", "0.1", "--learning_rate", "0.05"]
    options += ["--max_tokens", "150", "--max_steps", "40"]  # ends by the budget, unknown to a new launch
    grpo_here(*options)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["best_global_step"] < state["global_step"] < 40
    best = weights_of(tmp_path / f"checkpoint-{state['best_global_step']}")
    last = weights_of(tmp_path / f"checkpoint-{state['global_step']}")
    assert equal(weights_of(tmp_path), best)
    assert not equal(best, last)
    grpo_here(*options)
    assert equal(weights_of(tmp_path), best)


def test_the_last_weights_of_a_spent_budget_are_evaluated(grpo_here, tmp_path):
    grpo_here("--max_tokens", "20", "--eval_steps", "3")
    assert [line["step"] for line in metrics(tmp_path) if "eval_medqa_accuracy" in line] == [2]


@pytest.mark.parametrize(("first", "then"), [("grpo", "sft"), ("sft", "grpo")])
@pytest.mark.parametrize("finished", [True, False])
def test_neither_algorithm_resumes_the_other(first, then, finished, grpo_here, train_here, grpo_recipe, tmp_path):
    grpo_here("--algorithm", first, "--max_steps", "2")
    if not finished:
        (tmp_path / "trainer_state.json").unlink()
    command = ["--config", grpo_recipe, "--output_dir", tmp_path, "--algorithm", then, "--max_steps", "2"]
    _, error = train_here(*command, script=train_grpo, expect=2)
    place = tmp_path if finished else tmp_path / "checkpoint-2"
    assert re.match(f"train_grpo.py: error: .*{place}\\b", error.splitlines()[-1])


def test_a_state_that_was_cut_off_while_the_run_ended_is_written_again(grpo_here, tmp_path):
    grpo_here("--max_steps", "2")
    state = (tmp_path / "trainer_state.json").read_text()
    weights = weights_of(tmp_path)
    (tmp_path / "trainer_state.json").write_text(state[:100])
    grpo_here("--max_steps", "2")
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2
    assert equal(weights_of(tmp_path), weights)


def test_the_preflight_runs_at_the_start_and_not_on_resume(grpo_here, monkeypatch):
    printed = grpo_here("--max_steps", "2")
    assert ["128", "32"] in [numbers_in(line)[:2] for line in printed.splitlines()]  # completions, prompts
    assert "WARNING: " in printed
    monkeypatch.setattr(train_grpo, "print_preflight", None)
    grpo_here()  # continues to step 4


def test_the_preflight_changes_nothing(grpo_here, tmp_path, monkeypatch):
    grpo_here("--max_steps", "2", folder=tmp_path / "looked")
    monkeypatch.setattr(train_grpo, "print_preflight", lambda trainer: None)
    grpo_here("--max_steps", "2", folder=tmp_path / "blind")
    assert equal(weights_of(tmp_path / "looked"), weights_of(tmp_path / "blind"))


def test_completions_are_kept_for_reading(grpo_here, tmp_path):
    grpo_here("--max_steps", "2")
    table = pandas.concat(pandas.read_parquet(file) for file in sorted(tmp_path.glob("completions/*.parquet")))
    assert {"prompt", "completion", "correct", "length_penalty", "advantage"} <= set(table.columns)
    assert table.prompt.str.endswith("Answer:").all()
    assert len(table) >= 16


def test_a_group_answers_one_prompt_and_all_metrics_are_logged(grpo_here, tmp_path):
    grpo_here("--max_steps", "2")
    first = pandas.read_parquet(min(tmp_path.glob("completions/*.parquet")))
    assert first.prompt.value_counts().eq(4).all()
    assert first.prompt.nunique() == 4
    names = "reward rewards/correct/mean rewards/length_penalty/mean completions/mean_length off_policy/masked_share "
    names += "sampling/kept_tokens sampling/log_prob_difference entropy kl medqa/parse_rate generated_tokens"
    logged = set().union(*metrics(tmp_path))
    assert set(names.split()) <= logged
    drift = [line["sampling/log_prob_difference"] for line in metrics(tmp_path) if "reward" in line]
    assert len(drift) == 1
    assert max(drift) < 1e-5


def test_rewards_of_seen_and_unseen_questions_are_logged_separately(grpo_here, tmp_path):
    grpo_here("--grpo_holdout", "0.5", "--max_steps", "4")
    lines = metrics(tmp_path)
    for kind in ("seen", "unseen"):
        assert any(f"rewards/correct/{kind}" in line for line in lines)
    grpo_here("--grpo_holdout", "0.5", "--holdout_only", "true", "--max_steps", "2", folder=tmp_path / "unseen")
    assert not any("rewards/correct/seen" in line for line in metrics(tmp_path / "unseen"))


def test_adapters_end_as_a_merged_model(grpo_here, pretrained, tmp_path):
    grpo_here("--lora_rank", "2", "--learning_rate", "0.05", "--entropy_coef", "0.1")
    assert (tmp_path / "checkpoint-4" / "adapter_model.safetensors").exists()
    start, end = AutoModelForCausalLM.from_pretrained(pretrained), AutoModelForCausalLM.from_pretrained(tmp_path)
    changed = [name for (name, a), b in zip(start.named_parameters(), end.parameters(), strict=True) if (a != b).any()]
    assert all("proj" in name for name in changed)
    assert len(changed) == 14


def test_the_baseline_learns_from_the_same_prompts_and_resumes(grpo_here, tmp_path, monkeypatch):
    monkeypatch.setattr(train_grpo, "print_preflight", None)  # there is nothing to sample
    grpo_here("--algorithm", "sft", "--learning_rate", "0.01")
    assert len([line for line in metrics(tmp_path) if "loss" in line]) == 4
    again = tmp_path / "again"
    grpo_here("--algorithm", "sft", "--learning_rate", "0.01", "--max_steps", "2", folder=again)
    grpo_here("--algorithm", "sft", "--learning_rate", "0.01", folder=again)
    assert equal(weights_of(tmp_path), weights_of(again))


def completions_of(folder) -> list[list[tuple]]:
    """Each rollout's prompts, completions and rewards."""
    tables = map(pandas.read_parquet, sorted(folder.glob("completions/*.parquet")))
    return [list(table[["prompt", "completion", "correct", "length_penalty"]].itertuples(False)) for table in tables]


def passes(steps_per_generation: int, gradient_accumulation_steps: int) -> list[str]:
    """Options of GRPO."""
    return [
        *("--steps_per_generation", str(steps_per_generation)),
        *("--gradient_accumulation_steps", str(gradient_accumulation_steps)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "alone", "shared"),
    [("4", passes(4, 2), passes(2, 1)), ("16", passes(4, 4), passes(2, 2))],
    ids=["two updates a rollout", "a group on two processes"],
)
def test_two_processes_sample_and_learn_as_one(group, alone, shared, grpo_here, grpo_recipe, tmp_path):
    """At an equal global batch, before the first step and after updates."""
    options = ["--eval_strategy", "no", "--max_completion_length", "12", "--num_generations", group]
    printed = grpo_here(*options, *alone, folder=tmp_path / "one")
    command = ["--config", grpo_recipe, *options, *shared, "--output_dir", tmp_path / "two"]
    said, _ = run_ranks("train_grpo.py", *command)
    one, two = completions_of(tmp_path / "one"), completions_of(tmp_path / "two")
    assert [len(rollout) for rollout in one] == [16] * 4
    assert one == two
    assert len({row[:2] for rollout in one for row in rollout}) > 16
    for name, weight in weights_of(tmp_path / "one").items():
        torch.testing.assert_close(weights_of(tmp_path / "two")[name], weight, rtol=0, atol=1e-4)
    looked = [
        [line for line in text.splitlines() if re.match(r"(sampled|readable|clipped) ", line)]
        for text in (printed, said)
    ]
    assert looked[0]
    assert looked[0] == looked[1]


@ranks_resume_on_cpus
def test_two_processes_sum_their_tokens_and_resume_exactly(grpo_recipe, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    options = [
        "--config",
        grpo_recipe,
        "--steps_per_generation",
        "2",
        "--gradient_accumulation_steps",
        "1",
        "--output_dir",
    ]
    run_two(*options, straight, script="train_grpo.py")
    lines = [line for line in metrics(straight) if "completions/mean_length" in line]
    assert len(lines) == 2  # rollouts of 2 processes x 4 x 2 completions
    assert lines[-1]["generated_tokens"] == sum(16 * line["completions/mean_length"] for line in lines)
    assert max(line["sampling/log_prob_difference"] for line in lines) < 1e-5

    shutil.copytree(straight / "checkpoint-2", resumed / "checkpoint-2")
    run_two(*options, resumed, script="train_grpo.py")
    assert equal(weights_of(straight), weights_of(resumed))
    later = [line for line in metrics(straight) if line["step"] > 2 and "reward" in line]
    for before, after in zip(later, [line for line in metrics(resumed) if "reward" in line], strict=True):
        same = [name for name in before if "time" not in name and "runtime" not in name]
        assert {name: before[name] for name in same} == {name: after[name] for name in same}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--algorithm", "ppo"], r"algorithm: .*\['grpo', 'sft'\].*'ppo'"),
        (["--repetition_penalty", "1.2"], "repetition_penalty: "),
        (["--use_vllm", "true"], "use_vllm: .*keep_sampling_mask"),
        (["--max_steps", "-1"], r"max_steps: .*-1"),
        (["--max_completion_length", "250"], r"max_completion_length: .*\b6\b"),
        (["--num_generations", "3"], r".*\bnum_generations\b.*\b3\b"),
        (["--answer_formats", "words"], "answer_formats: .*'words'"),
        (["--answer_formats", "{text: 0.5, letter: 0.4}"], r"answer_formats: .*\b0\.4\b"),
        (["--answer_formats.text", "0.5"], r"answer_formats: .*\b0\.5\b"),
        (["--answer_formats", "reasoned", "--algorithm", "sft"], "answer_formats: .*--algorithm grpo"),
        (["--chat", "true"], "chat: "),
        (["--passages", "no/such/folder"], "passages: .*'no/such/folder'"),
        (["--passages", ".", "--num_passages", "0"], "num_passages: "),
    ],
)
def test_unusable_input_is_refused_in_one_line(options, message, train_here, grpo_recipe, tmp_path):
    _, line = train_here("--config", grpo_recipe, "--output_dir", tmp_path, *options, script=train_grpo, expect=2)
    assert re.match(rf"train_grpo\.py: error: {message}", line.splitlines()[-1]), line
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_refused_with_the_command_that_merges_it(grpo_here, train_here, grpo_recipe, corpus, tmp_path):
    grpo_here("--lora_rank", "2", "--learning_rate", "0.05", "--entropy_coef", "0.1", folder=tmp_path / "lora")
    adapter = tmp_path / "lora/checkpoint-4"
    options = ["--model_name_or_path", adapter, "--questions", corpus / "questions.jsonl"]
    lines = [
        train_here(*options, "--output_dir", tmp_path / "no", script=script, expect=2).err.splitlines()[-1]
        for script in (train_grpo, eval_medqa)
    ]
    with pytest.raises(InputError, match="^CHECKPOINT: ") as error:
        find_folder(str(adapter), None)
    commands = {line.partition("python -c ")[2] for line in (*lines, str(error.value))}
    assert len(commands) == 1
    exec(commands.pop().strip('"'), {})
    assert equal(weights_of(tmp_path / "lora/checkpoint-4-merged"), weights_of(tmp_path / "lora"))
    train_here(
        *options[2:],
        "--model_name_or_path",
        f"{adapter}-merged",
        "--split",
        "all",
        "--output_dir",
        tmp_path / "eval",
        script=eval_medqa,
    )


@pytest.mark.parametrize(("first", "then"), [("0", "2"), ("2", "0"), ("2", "4")])
def test_a_run_does_not_resume_with_other_adapters(first, then, grpo_here, train_here, grpo_recipe, tmp_path):
    grpo_here("--algorithm", "sft", "--lora_rank", first, "--max_steps", "2")
    command = ["--config", grpo_recipe, "--output_dir", tmp_path, "--algorithm", "sft", "--lora_rank", then]
    _, error = train_here(*command, script=train_grpo, expect=2)
    line = error.splitlines()[-1]
    assert re.match(rf"train_grpo\.py: error: {tmp_path}/checkpoint-2 .*\blora_rank: {then}\b.*\b{first}\b", line)
    assert "allow_recipe_change" not in line


@pytest.fixture(scope="module")
def half_done(grpo_recipe, tmp_path_factory):
    """A run that was stopped after its second step, by algorithm; a test takes a copy."""
    folders = tmp_path_factory.mktemp("half_done")
    for algorithm in ("grpo", "sft"):
        options = ["--algorithm", algorithm, "--output_dir", folders / algorithm, "--max_steps", "2"]
        run("train_grpo.py", "--config", grpo_recipe, *options)
        (folders / algorithm / "trainer_state.json").unlink()
    return folders


@pytest.mark.parametrize("algorithm", ["grpo", "sft"])
@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--beta", "0.1"], r"beta: 0\.1, was 0\.001"),
        (["--learning_rate", "0.002"], r"learning_rate: 0\.002, was 0\.001"),
        (["--num_generations", "8"], r"prompts_per_step: 1(\.0)?, was 2(\.0)?; num_generations: 8, was 4"),
        (["--temperature", "0.9"], r"temperature: 0\.9, was 1\.0"),
        (["--grpo_holdout", "0.5"], r"grpo_holdout: 0\.5, was 0\.0"),
        (["--seed", "1", "--lr_scheduler_type", "linear"], r"seed: 1, was 0; lr_scheduler_type: linear, was \w+"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)
def test_a_run_does_not_resume_with_another_recipe(
    algorithm, options, difference, half_done, grpo_recipe, train_here, tmp_path
):
    folder = shutil.copytree(half_done / algorithm, tmp_path / "run")
    before = contents(folder)
    command = ["--config", grpo_recipe, "--output_dir", folder, "--algorithm", algorithm, *options]
    _, error = train_here(*command, script=train_grpo, expect=2)
    message = rf"train_grpo\.py: error: {folder}/checkpoint-2 .*{difference}.*--allow_recipe_change true"
    assert re.match(message, error.splitlines()[-1])
    assert contents(folder) == before


@pytest.mark.parametrize("algorithm", ["grpo", "sft"])
def test_an_allowed_change_applies_and_every_launch_is_recorded(algorithm, half_done, grpo_here, tmp_path):
    folder = shutil.copytree(half_done / algorithm, tmp_path / "run")
    options = ["--algorithm", algorithm, "--learning_rate", "0.002", "--allow_recipe_change", "true"]
    grpo_here(*options, folder=folder)
    rates = {line["step"]: line["learning_rate"] for line in metrics(folder) if "learning_rate" in line}
    assert [rates[step] for step in (2, 3, 4)] == pytest.approx([0.001, 0.002, 0.002])
    assert [line["from_step"] for line in launches(folder)] == [0, 2]
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["learning_rate"] == 0.002
    recipes = [json.loads((folder / f"checkpoint-{step}" / "recipe.json").read_text()) for step in (2, 4)]
    assert [recipe["learning_rate"] for recipe in recipes] == [0.001, 0.002]
    grpo_here(*options[:4], folder=folder)  # finished, by the new recipe


def test_a_checkpoint_without_its_recipe_is_refused(half_done, grpo_recipe, train_here, tmp_path):
    folder = shutil.copytree(half_done / "sft" / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    (folder / "recipe.json").unlink()
    write_file_list(folder)
    command = ["--config", grpo_recipe, "--output_dir", folder.parent, "--algorithm", "sft"]
    _, error = train_here(*command, script=train_grpo, expect=2)
    assert re.match(rf"train_grpo\.py: error: {folder}: .*\brecipe\.json\b", error.splitlines()[-1])


@pytest.mark.parametrize("lora", [[], ["--lora_rank", "2"]], ids=["all weights", "lora"])
@pytest.mark.parametrize("algorithm", ["grpo", "sft"])
def test_a_run_resumes_after_a_stop(algorithm, lora, grpo_here, first_steps, tmp_path, monkeypatch):
    monkeypatch.setattr(train_grpo, "print_preflight", lambda trainer: None)
    options = ["--algorithm", algorithm, *lora, "--learning_rate", "0.05", "--entropy_coef", "0.1"]
    grpo_here(*options, folder=tmp_path / "straight")
    grpo_here(*options, "--max_steps", "2", folder=tmp_path / "stopped")
    grpo_here(*options, folder=tmp_path / "stopped")
    assert first_steps == [0, 0, 2]
    assert equal(weights_of(tmp_path / "straight"), weights_of(tmp_path / "stopped"))


@pytest.mark.parametrize("algorithm", ["grpo", "sft"])
def test_the_card_of_adapters_has_the_accuracy_of_the_weights_that_are_taken(algorithm, grpo_here, tmp_path):
    options = ["--algorithm", algorithm, "--lora_rank", "2", "--learning_rate", "0.5", "--entropy_coef", "0.1"]
    options += ["--max_steps", "8", "--metric_for_best_model", "eval_medqa_nll", "--seed", "1"]
    grpo_here(*options, "--load_best_model_at_end", "true")
    lines = {line["step"]: line for line in metrics(tmp_path) if "eval_medqa_nll" in line}
    best = json.loads((tmp_path / "trainer_state.json").read_text())["best_global_step"]
    assert best == min(lines, key=lambda step: lines[step]["eval_medqa_nll"])
    assert best < 8
    card = ModelCard.load(tmp_path / "README.md")
    assert re.search(rf"\bstep {best}, eval_medqa_nll\b", card.content)
    (entry,) = card.data.eval_results
    assert entry.metric_value == pytest.approx(lines[best]["eval_medqa_accuracy"], abs=1e-6)


@pytest.mark.parametrize("algorithm", ["grpo", "sft"])
def test_both_algorithms_follow_model_init_kwargs(algorithm, grpo_here, monkeypatch):
    attention = []
    monkeypatch.setattr(
        train_grpo, "finish", lambda trainer, *args: attention.append(trainer.model.config._attn_implementation)
    )
    monkeypatch.setattr(train_grpo, "print_preflight", lambda trainer: None)
    short = ["--algorithm", algorithm, "--max_steps", "1", "--eval_strategy", "no"]
    grpo_here(*short, "--model_init_kwargs", "{attn_implementation: eager}")
    assert attention == ["eager"]
