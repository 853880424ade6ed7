"""Every field of `TrainingArguments` has its effect on a run, is tested elsewhere, is neutral, or is refused.

A new field in a new version of transformers fails the first test until it is added to a table.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import TrainingArguments

from modeling_pure.errors import InputError
from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.training.arguments import PureTrainingArguments

SAVING = {"save_strategy": "steps", "save_steps": 1}
EVALUATING = {"eval_strategy": "steps", "eval_steps": 1}
BEST = {**SAVING, **EVALUATING, "learning_rate": 1.0, "warmup_steps": 0}
CHECKPOINTING = {"gradient_checkpointing": True}
NO_RNG = {"preserve_rng_state": False, "use_reentrant": False}
WORKER = {"dataloader_num_workers": 1}

# Field: a value, what it changes in `traces`, and the options that it needs.
ACTS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "output_dir": ("elsewhere", "folder", {}),
    "per_device_train_batch_size": (2, "weights", {}),
    "gradient_accumulation_steps": (2, "weights", {}),
    "max_steps": (2, "log", {}),
    "learning_rate": (1e-4, "weights", {}),
    "lr_scheduler_type": ("linear", "log", {}),
    "lr_scheduler_kwargs": ({"min_lr": 0.001}, "log", {}),
    "warmup_steps": (2, "log", {}),
    "weight_decay": (0.9, "weights", {}),
    "adam_beta1": (0.5, "weights", {}),
    "adam_beta2": (0.5, "weights", {}),
    "adam_epsilon": (1e-2, "weights", {}),
    "max_grad_norm": (0.01, "weights", {}),
    "bf16": (True, "weights", {"use_cpu": True}),
    "activation_checkpointing": (True, "checkpointing", {}),
    "activation_checkpointing_kwargs": (NO_RNG, "checkpointing", CHECKPOINTING),
    "gradient_checkpointing": (True, "checkpointing", {}),
    "gradient_checkpointing_kwargs": (NO_RNG, "checkpointing", CHECKPOINTING),
    "optim": ("adamw_torch", "optimizer", {}),
    "optim_args": ("momentum=0.9", "weights", {"optim": "sgd"}),
    "torch_compile": (True, "compiled", {}),
    "torch_compile_backend": ("eager", "compiled", {}),
    "torch_compile_mode": ("max-autotune", "compiled", {}),
    "use_cache": (True, "cache", {}),
    "neftune_noise_alpha": (5.0, "weights", {}),
    "logging_steps": (2, "log", {}),
    "logging_first_step": (True, "log", {"logging_steps": 2}),
    "include_num_input_tokens_seen": ("all", "log", {}),
    "log_level": ("error", "verbosity", {}),
    "disable_tqdm": (False, "callbacks", {}),
    "report_to": (["tensorboard"], "callbacks", {}),
    "eval_strategy": ("steps", "log", {"eval_steps": 1}),
    "eval_steps": (2, "log", EVALUATING),
    "eval_delay": (2, "log", EVALUATING),
    "eval_on_start": (True, "log", EVALUATING),
    "per_device_eval_batch_size": (1, "evaluated", EVALUATING),
    "save_strategy": ("steps", "files", {"save_steps": 1}),
    "save_steps": (2, "files", SAVING),
    "save_total_limit": (1, "files", SAVING),
    "load_best_model_at_end": (True, "weights", BEST),
    "metric_for_best_model": ("eval_bits_per_byte", "best", BEST),
    "greater_is_better": (True, "best", BEST),
    "full_determinism": (True, "deterministic", {}),
    "seed": (1, "weights", {"data_seed": 0}),
    "data_seed": (1, "weights", {}),
    "dataloader_num_workers": (1, "loader", {}),
    "dataloader_prefetch_factor": (3, "loader", WORKER),
    "dataloader_multiprocessing_context": ("spawn", "loader", WORKER),
    "debug": ("underflow_overflow", "hooks", {}),
    "skip_memory_metrics": (False, "log", {}),
}
BUILT = ("compiled", "cache", "verbosity", "callbacks", "deterministic", "loader")  # before the first step

# Field: where its effect is tested.
ELSEWHERE = {
    **dict.fromkeys(("run_name", "project", "trackio_space_id", "trackio_bucket_id"), "trackers, by Trainer"),
    "trackio_static_space_id": "trackers, by Trainer",
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id"), "test_pretrain_hub"),
    **dict.fromkeys(("hub_strategy", "hub_revision"), "test_pretrain_hub"),
    **dict.fromkeys(("use_cpu", "tf32", "torch_empty_cache_steps", "dataloader_pin_memory"), "GPUs, by Trainer"),
    **dict.fromkeys(("ddp_bucket_cap_mb", "ddp_static_graph", "ddp_backend", "ddp_timeout"), "DDP, by Trainer"),
    **dict.fromkeys(("log_level_replica", "log_on_each_node", "save_on_each_node"), "machines, by Trainer"),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed"), "test_pretrain_parallel"),
    "resume_from_checkpoint": "test_pretrain",
    "prediction_loss_only": "predict, in test_trainer",
    "optim_target_modules": "GaLore and APOLLO, by Trainer",
}

# Field: a value that changes nothing, because its condition always or never holds.
NEED_NOT = {
    "do_train": True,
    "do_eval": True,
    "ddp_find_unused_parameters": True,  # every step uses every weight
    "ddp_broadcast_buffers": True,  # no buffer changes
    "ignore_data_skip": False,  # sequences carry their position
    "logging_nan_inf_filter": True,  # non-finite steps are skipped and counted
    "dataloader_persistent_workers": True,
    "remove_unused_columns": False,
    "local_rank": 0,  # from the launcher's environment
}

# Field: a value that both phases refuse; by default the other truth value.
REFUSED: dict[str, Any] = {
    **dict.fromkeys(("save_only_model", "fp16", "average_tokens_across_devices", "auto_find_batch_size")),
    **dict.fromkeys(("enable_jit_checkpoint", "restore_callback_states_from_checkpoint", "hub_always_push")),
    **dict.fromkeys(("dataloader_drop_last", "dataloader_in_order", "do_predict", "use_liger_kernel")),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval", "eval_do_concat_batches", "eval_use_gather_object")),
    "batch_eval_metrics": None,
    "label_smoothing_factor": 0.1,
    "accelerator_config": {"split_batches": True},
    "parallelism_config": object(),
    "liger_kernel_config": {"rope": True},
    "eval_accumulation_steps": 2,
    "include_for_metrics": ["loss"],
    "label_names": ["labels"],
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "len",
}
REFUSED_IN_PRETRAINING = {
    "num_train_epochs": 1,
    "logging_strategy": "epoch",
}
FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments)}
OURS = ("data_seed", "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "save_total_limit")
INSTALLED = [
    pytest.param(name, marks=() if name in OURS else pytest.mark.slow)  # Trainer implements the others
    for name in ACTS
    if name in FIELDS
]


def test_the_tables_cover_every_field_of_the_installed_version():
    tables = (ACTS, ELSEWHERE, NEED_NOT, REFUSED, REFUSED_IN_PRETRAINING)
    known = Counter(name for table in tables for name in table)
    assert FIELDS.keys() - known == set()
    assert [name for name, times in known.items() if times > 1] == []


def refused() -> Iterator[tuple[type, str, Any]]:
    for kind in (PureTrainingArguments, PureGRPOConfig):
        values = REFUSED | (REFUSED_IN_PRETRAINING if kind is PureTrainingArguments else {})
        for name in values.keys() & FIELDS:
            yield kind, name, not FIELDS[name].default if values[name] is None else values[name]


def test_refusals_name_the_option(tmp_path):
    taken = []
    for kind, name, value in refused():
        try:
            kind(output_dir=str(tmp_path), use_cpu=True, **{name: value})
        except InputError as error:
            if str(error).startswith(f"{name}: "):
                continue
        taken.append((kind, name))
    assert taken == []
    with pytest.raises(InputError, match=r"^fsdp_config: "):
        PureTrainingArguments(output_dir=str(tmp_path), fsdp_config={"min_num_params": 1})


def test_a_copy_of_the_arguments_is_accepted(tmp_path):
    args = PureTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=3)
    assert dataclasses.replace(args, max_steps=4).max_steps == 4


def traces(trainer: Any, evaluated: list[int]) -> dict[str, Any]:
    """The traces of a run that an option may change."""
    folder, model = Path(trainer.args.output_dir), trainer.model
    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
    lines, timed = trainer.state.log_history, ("_runtime", "_second", "_delta", "hours_left")
    loader, layer = trainer.get_train_dataloader(), model.model.layers[0]
    context, checkpointed = loader.multiprocessing_context, getattr(layer, "_gradient_checkpointing_func", None)
    return {
        "folder": folder.name,
        "weights": hashlib.sha256(weights).hexdigest(),
        "log": [{n: v for n, v in line.items() if not n.endswith(timed)} for line in lines]
        + [sorted(line) for line in lines],
        "files": sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()),
        "best": trainer.best_saved()[1:],
        "evaluated": evaluated,
        "checkpointing": (layer.gradient_checkpointing, checkpointed and checkpointed.keywords),
        "optimizer": str(trainer.optimizer),
        "compiled": str(trainer.accelerator.state.dynamo_plugin),
        "cache": model.config.use_cache,
        "verbosity": transformers.logging.get_verbosity(),
        "callbacks": sorted(type(callback).__name__ for callback in trainer.callback_handler.callbacks),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "hooks": len(layer._forward_hooks),
        "loader": (loader.num_workers, loader.prefetch_factor, context and context.get_start_method()),
    }


@pytest.fixture
def run(make_trainer, tmp_path):
    """Train for three steps, or only build the trainer; returns the traces of it."""
    verbosity = transformers.logging.get_verbosity()

    def run(*, train: bool = True, **given) -> dict[str, Any]:
        folder = tmp_path / given.pop("output_dir", "run")
        trainer = make_trainer(**{"max_steps": 3, "max_seq_length": 32, **given, "output_dir": str(folder)})
        rows: list[int] = []
        trainer.model.register_forward_pre_hook(
            lambda model, args, kwargs: None if model.training else rows.append(len(kwargs["input_ids"])),
            with_kwargs=True,
        )
        if train:
            trainer.train()
        return traces(trainer, rows)

    yield run
    torch.use_deterministic_algorithms(False)
    transformers.logging.set_verbosity(verbosity)


BEFORE: dict[str, dict[str, Any]] = {}  # runs to compare several options with


@pytest.mark.parametrize("name", INSTALLED)
def test_the_option_has_its_effect(name, run):
    value, where, needs = ACTS[name]
    train = where not in BUILT
    key = f"{needs} {train}"
    if key not in BEFORE:
        BEFORE[key] = run(train=train, **needs)
    after = run(train=train, **{"output_dir": "other", **needs, name: value})
    assert after[where] != BEFORE[key][where]


def test_neutral_options_change_nothing(run):
    """The other tests need equal runs to leave equal traces."""
    plain = run(output_dir="a/run", **BEST)
    assert plain["log"]
    assert run(output_dir="b/run", **BEST, **NEED_NOT) == plain
