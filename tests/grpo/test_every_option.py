"""Every field that `GRPOConfig` adds to `TrainingArguments`, whose own fields are in `tests/training`.

A field that a new version of TRL brings fails the first test until somebody has looked at what it does here.
"""

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, TrainingArguments
from trl import GRPOConfig

from modeling_pure.errors import InputError
from modeling_pure.grpo.prompts import PromptSettings, prompt_dataset
from tests.conftest import with_chat_template
from tests.grpo.conftest import GPT2_SHAPE

UNMASKED = {"keep_sampling_mask": False, "top_p": 1.0, "top_k": 0}
OFF_POLICY = {"learning_rate": 0.003, "num_iterations": 2}
ENTROPY = {"use_adaptive_entropy": True, "entropy_coef": 0.1, "entropy_target": 100.0}
SYNCED = {"sync_ref_model": True, "ref_model_sync_steps": 1, "learning_rate": 0.1}
SEQUENCE = {**OFF_POLICY, "loss_type": "grpo"}

# Field: a value, what it changes in `traces`, and the options that it needs.
ACTS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "model_init_kwargs": ({"attn_implementation": "eager"}, "attention", {}),
    "cast_lm_head_to_fp32": (False, "weights", {"bf16": True}),
    "num_generations": (2, "log", {}),
    "num_generations_eval": (2, "log", {"eval_strategy": "steps", "eval_steps": 1}),
    "max_completion_length": (5, "log", {}),
    "shuffle_dataset": (True, "log", {}),
    "pad_to_multiple_of": (8, "batch", {}),
    "generation_batch_size": (8, "log", {"steps_per_generation": 8}),
    "steps_per_generation": (2, "log", {}),
    "temperature": (0.5, "log", {}),
    "top_p": (0.5, "log", {}),
    "top_k": (5, "log", {}),
    "min_p": (0.1, "log", {}),
    "generation_kwargs": ({"suppress_tokens": [*range(100)]}, "log", {}),
    "repetition_penalty": (1.5, "log", UNMASKED),
    "cache_implementation": ("static", "generation", {**UNMASKED, "repetition_penalty": 1.5}),
    "beta": (0.5, "weights", OFF_POLICY),
    "num_iterations": (2, "log", {"max_steps": 3}),
    "epsilon": (1e-4, "weights", OFF_POLICY),
    "delta": (1.0, "weights", OFF_POLICY),
    "epsilon_high": (1e-4, "weights", OFF_POLICY),
    "sapo_temperature_neg": (5.0, "weights", {**OFF_POLICY, "loss_type": "sapo"}),
    "sapo_temperature_pos": (5.0, "weights", {**OFF_POLICY, "loss_type": "sapo"}),
    "vespo_k_pos": (5.0, "weights", {**OFF_POLICY, "loss_type": "vespo"}),
    "vespo_lambda_pos": (5.0, "weights", {**OFF_POLICY, "loss_type": "vespo"}),
    "vespo_k_neg": (5.0, "log", {**OFF_POLICY, "loss_type": "vespo"}),
    "vespo_lambda_neg": (5.0, "log", {**OFF_POLICY, "loss_type": "vespo"}),
    "importance_sampling_level": ("sequence", "weights", SEQUENCE),
    "reward_weights": ([0.1, 1.0], "weights", {}),
    "multi_objective_aggregation": ("normalize_then_sum", "weights", {"scale_rewards": "group"}),
    "scale_rewards": ("group", "weights", {}),
    "loss_type": ("dr_grpo", "log", {}),
    "mask_truncated_completions": (True, "weights", {}),
    "sync_ref_model": (True, "callbacks", {}),
    "ref_model_mixup_alpha": (0.1, "reference", SYNCED),
    "ref_model_sync_steps": (2, "reference", SYNCED),
    "top_entropy_quantile": (0.5, "weights", {}),
    "entropy_coef": (0.5, "weights", {}),
    "use_adaptive_entropy": (True, "log", {}),
    "entropy_coef_min": (0.1, "log", {**ENTROPY, "entropy_target": 0.0}),
    "entropy_coef_max": (0.1, "weights", ENTROPY),
    "entropy_coef_delta": (0.5, "weights", ENTROPY),
    "entropy_target": (100.0, "weights", {**ENTROPY, "entropy_target": 0.0}),
    "off_policy_mask_threshold": (None, "log", OFF_POLICY),
    "use_bias_correction_kl": (False, "weights", {**OFF_POLICY, "beta": 0.5}),
    "log_completions": (False, "files", {}),
    "num_completions_to_print": (1, "printed", {}),
}
BUILT = ("attention", "generation", "callbacks")  # before the first step

# Field: where its effect is tested.
ELSEWHERE = {
    "trust_remote_code": "test_foreign_models",
    "disable_dropout": "below",
    "chat_template_kwargs": "below",
    **dict.fromkeys(("log_unique_prompts", "log_completions_hub_repo"), "trackers, by TRL"),
    **{field.name: "vLLM, by TRL" for field in dataclasses.fields(GRPOConfig) if field.name.startswith("vllm_")},
    "use_vllm": "vLLM, by TRL",
}

# Field: a value that changes nothing, because its condition never holds here.
NEED_NOT = {
    "log_multimodal": False,  # no images
    "max_tool_calling_iterations": 1,
    "ds3_gather_for_generation": False,  # ZeRO-3 is refused
}

# Field: a value that is refused.
REFUSED: dict[str, Any] = {
    "use_transformers_continuous_batching": True,
    "use_transformers_paged": True,
    "transformers_continuous_batching_config": {"block_size": 8},
    "router_aux_loss_coef": 0.1,  # by TRL: no mixture of experts
}
# Options that belong to another one, which is off.
IDLE = {
    "vllm_mode": "server",
    "vllm_gpu_memory_utilization": 0.5,
    "sapo_temperature_neg": 2.0,
    "vespo_k_pos": 5.0,
    "entropy_coef_max": 0.5,
    "entropy_target": 0.5,
    "ref_model_sync_steps": 2,
    "cache_implementation": "static",
}
OWN = {field.name for field in dataclasses.fields(GRPOConfig)} - {
    f.name for f in dataclasses.fields(TrainingArguments)
}
OURS = ("shuffle_dataset", "generation_batch_size", "off_policy_mask_threshold", "pad_to_multiple_of")


def test_the_tables_cover_every_field_of_the_installed_version():
    known = Counter(name for table in (ACTS, ELSEWHERE, NEED_NOT, REFUSED) for name in table)
    assert known.keys() >= OWN
    assert [name for name, times in known.items() if times > 1] == []


def test_refusals_name_the_option(make_trainer):
    taken = []
    for name, value in {**REFUSED, **IDLE}.items():
        try:
            make_trainer(**{name: value})
        except (InputError, ValueError) as error:
            if name in str(error):
                continue
        taken.append(name)
    assert taken == []
    with pytest.raises(InputError, match="^log_unique_prompts: "):
        make_trainer(log_completions=False, log_unique_prompts=True)


def traces(trainer: Any, printed: str) -> dict[str, Any]:
    """The traces of a run that an option may change."""
    folder = Path(trainer.args.output_dir)

    def digest(model: Any) -> str:
        weights = [parameter.detach().numpy().tobytes() for parameter in model.parameters()] if model else []
        return hashlib.sha256(b"".join(weights)).hexdigest()

    timed = ("_runtime", "_second", "step_time")
    return {
        "weights": digest(trainer.model),
        "reference": digest(trainer.ref_model),
        "log": [
            {name: value for name, value in line.items() if not name.endswith(timed)}
            for line in trainer.state.log_history
        ],
        "files": sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()),
        "attention": trainer.model.config._attn_implementation,
        "callbacks": sorted(type(callback).__name__ for callback in trainer.callback_handler.callbacks),
        "generation": str(getattr(trainer, "generation_config", None)),
        "batch": [part["completion_ids"].shape for part in trainer._buffered_inputs or ()],
        "printed": len(printed.splitlines()),
    }


@pytest.fixture
def run(make_trainer, tmp_path, capsys):
    """Train for two steps, or only build the trainer; returns the traces of it."""

    def run(folder: str, *, train: bool = True, **given) -> dict[str, Any]:
        settings = {"max_steps": 2, "save_strategy": "no", "output_dir": str(tmp_path / folder)}
        trainer = make_trainer(**{**settings, **given})
        if train:
            trainer.train()
        return traces(trainer, capsys.readouterr().out)

    return run


BEFORE: dict[str, dict[str, Any]] = {}  # runs to compare several options with


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OURS else pytest.mark.slow) for name in ACTS if name in OWN]
)
def test_the_option_has_its_effect(name, run):
    value, where, needs = ACTS[name]
    train = where not in BUILT
    key = f"{needs} {train}"
    if key not in BEFORE:
        BEFORE[key] = run("before", train=train, **needs)
    assert run("after", train=train, **{**needs, name: value})[where] != BEFORE[key][where]


def test_neutral_options_change_nothing(run):
    """The other tests need equal runs to leave equal traces."""
    plain = run("before")
    assert plain["log"]
    assert run("after", **NEED_NOT) == plain


def test_dropout_can_stay_enabled(make_trainer, tmp_path):
    ended = []
    for disable in (True, False):
        torch.manual_seed(0)
        config = GPT2Config(**GPT2_SHAPE, bos_token_id=0, eos_token_id=0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        settings = {"beta": 0.0, "max_steps": 1, "output_dir": str(tmp_path / str(disable))}
        trainer = make_trainer(model, disable_dropout=disable, **settings)
        trainer.train()
        ended.append(trainer.model.transformer.wte.weight.detach())
    assert not torch.equal(*ended)


def test_chat_template_kwargs_reach_the_template(make_trainer, questions, tokenizer):
    template = "{{ manner }}{% for message in messages %}{{ message.content }}{% endfor %}"
    rows = prompt_dataset(questions, 60, seed=0, settings=PromptSettings({"letter": 1.0}, chat=True))
    settings = {"rows": rows, "chat_tokenizer": with_chat_template(tokenizer, template)}
    plain, brief = (make_trainer(**settings, chat_template_kwargs=more) for more in ({}, {"manner": "In brief. "}))
    ids = [trainer._tokenize_prompts([rows[0]["prompt"]])[0][0] for trainer in (plain, brief)]
    assert tokenizer.decode(ids[1]) == f"In brief. {tokenizer.decode(ids[0])}"
