"""Which changes of the recipe a run may resume with."""

import json

import pytest

from modeling_pure.errors import InputError
from modeling_pure.training.run_folder import CHECKPOINT_RECIPE, check_recipe

RECIPE = {
    "preset": "tiny",
    "model_overrides": {"hidden_size": 32},
    "sources": {"c4": {"path": "a.jsonl", "weight": 1}},
    "max_seq_length": 64,
    "document_mask": False,
    "grpo_holdout": 0.0,
    "decontaminate": None,
    "sequences_per_step": 4,
    "seed": 0,
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"min_lr": 1e-4},
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
}


def other(value: object) -> object:
    """Another value of the same kind."""
    if isinstance(value, dict):
        return {name: other(one) for name, one in value.items()}
    return f"{value}x" if isinstance(value, str) else (value or 0) + 1


@pytest.mark.parametrize("key", RECIPE)
def test_what_a_course_of_training_depends_on_may_not_change(tmp_path, key):
    (tmp_path / CHECKPOINT_RECIPE).write_text(json.dumps(RECIPE))
    with pytest.raises(InputError, match=rf"\b{key}\b"):
        check_recipe(tmp_path, {**RECIPE, key: other(RECIPE[key])})


@pytest.mark.parametrize(
    "given", [{"logging_steps": 7}, {"max_steps": 99}, {"sources": {"c4": {"path": "b", "weight": 1}}}]
)
def test_intervals_length_and_paths_may_change(tmp_path, given):
    (tmp_path / CHECKPOINT_RECIPE).write_text(json.dumps({**RECIPE, "logging_steps": 1, "max_steps": 12}))
    check_recipe(tmp_path, {**RECIPE, "logging_steps": 1, "max_steps": 12, **given})
