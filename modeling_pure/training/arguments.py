"""Pretraining arguments. The defaults are those of the two-day run on one A100."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase, SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from ..configuration_pure import PRESETS, PureConfig
from ..errors import InputError, first_line
from ..options import check_choices, check_numbers, option
from ..tokenizer import check_vocabulary
from .batch import BatchPlan
from .trainer_options import RunOptions, check_trainer_options

OPTIMIZERS = ("adamw", "muon")
REFUSED = {
    "num_train_epochs": "max_steps sets the length of a run, and a source's `max_epochs` limits that source",
    "logging_strategy": "log lines check for non-finite steps",
}


@dataclass
class ModelArguments:
    """The model."""

    TENSORS: ClassVar = ("preset", "model_overrides")

    preset: str = option(
        "medium-large", "model size: tiny, small (30M), medium (124M), medium-large (401M parameters)"
    )
    model_overrides: dict[str, Any] | None = option(
        None, "PureConfig fields that differ from the preset, e.g. vocab_size"
    )


def model_config(
    model_args: ModelArguments, sequence_length: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> PureConfig:
    """The preset's configuration with the special tokens and vocabulary of a tokenizer, if there is one.

    Raises:
        InputError: an unknown preset or field, an impossible shape, or a vocabulary or sequence that does not fit.
    """
    given = model_args.model_overrides or {}
    for unknown in set(given) - {one.name for one in fields(PureConfig)}:
        raise InputError(f"model_overrides.{unknown}: PureConfig has no such field")
    preset = PRESETS.get(model_args.preset, {})
    vocab_size = given.get("vocab_size", preset.get("vocab_size", PureConfig.vocab_size))
    if tokenizer is not None and isinstance(vocab_size, int):  # PureConfig refuses other types
        check_vocabulary(tokenizer, vocab_size)
    fitted = {name: getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fitted["num_real_tokens"] = None if tokenizer is None else len(tokenizer)
    try:
        config = PureConfig.from_preset(model_args.preset, **{**fitted, **given})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"preset: {first_line(error.__cause__ or error)}") from error
    if sequence_length > config.max_position_embeddings:
        raise InputError(
            f"max_seq_length: {sequence_length} is longer than the model's {config.max_position_embeddings}"
        )
    return config


@dataclass
class PureTrainingArguments(RunOptions, TrainingArguments):
    """Optimisation, schedule, checkpoints and logging."""

    FIXED = (*RunOptions.FIXED, "sequences_per_step")
    TENSORS = (*RunOptions.TENSORS, "optimizer")

    output_dir: str = option("runs/pretrain", "run folder; the same command resumes from its last complete checkpoint")
    max_steps: int = option(61_035, "optimizer steps; 61,035 x 32,768 tokens = 2B tokens")
    tokens_per_step: int | None = option(
        None, "tokens per optimizer step over all devices; sets micro-batches and accumulation"
    )
    per_device_train_batch_size: int = option(
        16, "sequences per micro-batch and device; an upper limit with tokens_per_step"
    )
    gradient_accumulation_steps: int = option(1, "micro-batches per optimizer step, without tokens_per_step")
    optimizer: str = option("adamw", "adamw: the one named by `optim`; muon: Muon for the layers, AdamW for the rest")
    learning_rate: float = option(3e-4, "peak learning rate")
    lr_scheduler_type: str = option("cosine_with_min_lr", "schedule after warm-up")
    lr_scheduler_kwargs: dict[str, Any] | None = option(
        None, "schedule settings; default: {min_lr: 3e-5} for cosine_with_min_lr, else none"
    )
    warmup_steps: float = option(1526, "steps of linear warm-up; 1,526 = 50M tokens")
    weight_decay: float = option(0.1, "decoupled weight decay")
    adam_beta1: float = option(0.9, "AdamW's first-moment decay")
    adam_beta2: float = option(0.95, "AdamW's second-moment decay")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon")
    max_grad_norm: float = option(1.0, "clip gradients to this norm")
    compile_layers: bool | None = option(None, "torch.compile each decoder layer; default: true on a GPU")
    max_nonfinite_steps: int = option(
        5, "skip steps whose loss or gradient is not finite; stop after this many consecutive skipped steps"
    )
    eval_steps: float | None = option(1000, "optimizer steps between validations")
    per_device_eval_batch_size: int = option(8, "sequences per forward pass of validation and device")
    save_strategy: str = option("steps", "when to save a checkpoint")
    save_steps: float = option(1000, "optimizer steps between checkpoints")
    metric_for_best_model: str | None = option("eval_loss", "metric that selects the best checkpoint")
    dataloader_num_workers: int = option(2, "processes that read and tokenise; 0 = the training process itself")
    seed: int = option(0, "seed of the weights, and of the data order unless data_seed is set")

    def batch_plan(self, sequence_length: int) -> BatchPlan:
        """The division of a step into micro-batches of sequences of `sequence_length` tokens.

        Raises:
            InputError: `tokens_per_step` cannot be divided, or `gradient_accumulation_steps` contradicts it.
        """
        size, accumulation = self.per_device_train_batch_size, self.gradient_accumulation_steps
        if self.tokens_per_step is None:
            return BatchPlan(size, accumulation, self.world_size)
        sequences = self.tokens_per_step / sequence_length
        step = f"tokens_per_step: {self.tokens_per_step:,} tokens are {sequences:g} sequences of {sequence_length:,}"
        plan = BatchPlan.divide(step, sequences, self.world_size, size)
        if accumulation not in (1, plan.accumulation):
            raise InputError(
                f"gradient_accumulation_steps: {accumulation} micro-batches of {plan.micro_batch_size} sequences "
                f"contradict the {plan.micro_batch_size * plan.accumulation} of tokens_per_step; leave it out"
            )
        return plan

    def __post_init__(self) -> None:
        if self.compile_layers is None:
            whole_model = self.torch_compile or self.torch_compile_backend or self.torch_compile_mode
            self.compile_layers = torch.cuda.is_available() and not whole_model
        # Every step uses every weight, and buffers never change.
        self.ddp_find_unused_parameters = self.ddp_broadcast_buffers = False
        # Trainer would replay and tokenise all earlier batches; ours carry their position.
        self.ignore_data_skip = True
        # The filter replaces a NaN by the mean of earlier losses and synchronises with the device at every step.
        self.logging_nan_inf_filter = False
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == SchedulerType.COSINE_WITH_MIN_LR:
            self.lr_scheduler_kwargs = {"min_lr": 3e-5}
        check_numbers(self, max_steps=1, max_nonfinite_steps=1, tokens_per_step=1)
        check_choices(self, optimizer=OPTIMIZERS)
        check_trainer_options(self, **REFUSED)
        if "layerwise" in self.optim or (self.optimizer == "muon" and self.optim != OptimizerNames.ADAMW_TORCH_FUSED):
            raise InputError(
                f"optim: layerwise ones are unsupported, and `optimizer: muon` takes none, found {self.optim}"
            )
        super().__post_init__()
