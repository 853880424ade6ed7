"""Which changes of the recipe a run may resume with, in either phase and the baseline."""

from dataclasses import replace

import pytest

from modeling_pure.errors import InputError
from modeling_pure.recipe import Recipe
from modeling_pure.training.run_folder import CHECKPOINT_RECIPE, check_recipe, write_recipe
from train_grpo import parse_arguments as parse_grpo
from train_pretrain import parse_arguments as parse_pretrain

SOURCES = '{"c4": {"path": "a.jsonl", "weight": 1}}'
MODEL = ["--preset", "medium", "--model_overrides", "{num_hidden_layers: 2}"]
PRETRAIN = parse_pretrain(["--sources", SOURCES, *MODEL])[-1]
GRPO, SFT = (
    parse_grpo(["--algorithm", kind, "--answer_formats", "letter"])[-1].resolve(model_shape={"hidden_size": 32})
    for kind in ("grpo", "sft")
)
KINDS = {"pretraining": PRETRAIN, "grpo": GRPO, "sft": SFT}
EXPECTED = {  # by name, so that none is lost from the classes
    "pretraining": {
        *("preset", "model_overrides", "sources", "max_seq_length", "document_mask", "grpo_holdout", "decontaminate"),
        *("sequences_per_step", "seed", "data_seed", "optimizer", "optim", "optim_args"),
        *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
        *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    },
    "grpo": {
        *("algorithm", "model_name_or_path", "lora_rank", "lora_alpha", "questions", "questions_config", "passages"),
        *("answer_formats", "chat", "num_passages", "grpo_holdout", "holdout_only", "length_penalty_min_tokens"),
        *("beta", "num_generations", "prompts_per_step", "updates_per_rollout", "max_completion_length", "seed"),
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", "data_seed"),
        *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
        *("optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "loss_type", "reward_weights"),
    },
}
EXPECTED["sft"] = EXPECTED["grpo"]
FIXED = [(kind, key) for kind, recipe in KINDS.items() for key in (*recipe.fixed, *recipe.tensors)]


def other(value: object) -> object:
    """Another value of the same kind."""
    if isinstance(value, dict):
        return {name: other(one) for name, one in value.items()}
    if isinstance(value, list):
        return [*value, 1]
    return f"{value}x" if isinstance(value, str) else (value or 0) + 1


def changed(recipe: Recipe, **values: object) -> Recipe:
    return replace(recipe, resolved=recipe.resolved | values)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fixed_options_include_those_named(kind):
    assert {key for one, key in FIXED if one == kind} >= EXPECTED[kind]
    assert EXPECTED[kind] <= KINDS[kind].resolved.keys()


@pytest.mark.parametrize(("kind", "key"), FIXED)
def test_fixed_options_may_not_change(tmp_path, kind, key):
    recipe = KINDS[kind]
    write_recipe(tmp_path, recipe)
    check_recipe(tmp_path, recipe)
    new = changed(recipe, **{key: other(recipe.resolved[key])})
    with pytest.raises(InputError, match=rf"^{tmp_path} .*\b{key}\b"):
        check_recipe(tmp_path, new)
    if key in recipe.tensors:
        with pytest.raises(InputError, match=rf"^{tmp_path} .*\b{key}\b"):
            check_recipe(tmp_path, new, allow_change=True)
    else:
        check_recipe(tmp_path, new, allow_change=True)


@pytest.mark.parametrize(
    "given", [{"logging_steps": 7}, {"max_steps": 99}, {"sources": {"c4": {"path": "b", "weight": 1}}}]
)
def test_intervals_length_and_paths_may_change(tmp_path, given):
    recipe = changed(PRETRAIN, sources={"c4": {"path": "a", "weight": 1}})
    write_recipe(tmp_path, recipe)
    check_recipe(tmp_path, changed(recipe, **given))


@pytest.mark.parametrize("kind", ["grpo", "sft"])
def test_neither_phase_resumes_what_another_wrote(tmp_path, kind):
    write_recipe(tmp_path, PRETRAIN)
    with pytest.raises(InputError, match=rf"^{tmp_path}: .*\balgorithm\b"):
        check_recipe(tmp_path, KINDS[kind], allow_change=True)
    write_recipe(tmp_path, KINDS[kind])
    with pytest.raises(InputError, match=rf"^{tmp_path}: .*\bpreset\b"):
        check_recipe(tmp_path, PRETRAIN, allow_change=True)
    with pytest.raises(InputError, match=r"\balgorithm: \w+, was \w+"):
        check_recipe(tmp_path, SFT if kind == "grpo" else GRPO)


def test_a_checkpoint_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(InputError, match=rf"^{tmp_path}: .*\b{CHECKPOINT_RECIPE}\b"):
        check_recipe(tmp_path, GRPO, allow_change=True)


def test_a_token_inside_a_mapping_is_never_written(tmp_path):
    kwargs = "{token: hf_secret, attn_implementation: eager}"
    write_recipe(tmp_path, parse_grpo(["--model_init_kwargs", kwargs, "--hub_token", "hf_secret"])[-1])
    texts = [file.read_text() for file in tmp_path.iterdir()]
    assert len(texts) == 2
    assert all("eager" in text and "hf_secret" not in text for text in texts)


@pytest.mark.parametrize(
    ("parse", "argv"),
    [
        (parse_pretrain, ["--sources", SOURCES, "--tokens_per_step", "65536"]),
        (parse_grpo, ["--prompts_per_step", "4", "--answer_formats", "letter", "--off_policy_mask_threshold", "inf"]),
        (parse_grpo, ["--generation_batch_size", "64", "--chat", "true"]),
        (parse_grpo, ["--generation_kwargs", "{min_new_tokens: 2}", "--scale_rewards", "batch"]),
    ],
)
def test_a_written_recipe_is_read_back_unchanged(tmp_path, parse, argv):
    recipe = parse(argv)[-1]
    write_recipe(tmp_path, recipe)
    again = parse(["--config", str(tmp_path / "recipe.yaml")])[-1]
    assert again.resolved == recipe.resolved
