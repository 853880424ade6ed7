"""What a pretraining run is told. The defaults are the seed's two-day run on one A100."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase, SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from ..configuration_pure import PRESETS, PureConfig
from ..errors import InputError, first_line
from ..options import check_choices, check_numbers
from ..tokenizer import check_vocabulary
from .kernels import check_attention_kernel
from .launch import join_processes
from .trainer_options import check_built_options, check_trainer_options

OPTIMIZERS = ("adamw", "muon")
REFUSED = {
    "num_train_epochs": "max_steps is the length of a run; `max_epochs` of a source limits its own",
    "logging_strategy": "steps that are not finite are looked for at log lines",
}


@dataclass
class ModelArguments:
    """The model."""

    preset: str = field(
        default="medium-large",
        metadata={"help": "size of the model: tiny, small (30M), medium (124M), medium-large (401M parameters)"},
    )
    model_overrides: dict[str, Any] | None = field(
        default=None, metadata={"help": "PureConfig fields that differ from the preset, e.g. vocab_size"}
    )


def model_config(
    model_args: ModelArguments, sequence_length: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> PureConfig:
    """The preset's configuration, fitted to a tokenizer; without one, no token of it is special.

    Raises:
        InputError: an unknown preset or field, a shape that cannot be, a vocabulary or rows that do not fit in.
    """
    given = model_args.model_overrides or {}
    for unknown in set(given) - {one.name for one in fields(PureConfig)}:
        raise InputError(f"model_overrides.{unknown}: PureConfig has no such field")
    preset = PRESETS.get(model_args.preset, {})
    vocab_size = given.get("vocab_size", preset.get("vocab_size", PureConfig.vocab_size))
    if tokenizer is not None and isinstance(vocab_size, int):  # PureConfig says what is wrong with any other
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
class PureTrainingArguments(TrainingArguments):
    """Optimisation, schedule, checkpoints and reports."""

    output_dir: str = field(
        default="runs/pretrain",
        metadata={"help": "folder of the run; the same command again continues from its last complete checkpoint"},
    )
    max_steps: int = field(default=61_035, metadata={"help": "optimizer steps; 61,035 x 32,768 tokens = 2B tokens"})
    tokens_per_step: int | None = field(
        default=None,
        metadata={"help": "tokens of an optimizer step over all devices, however many; the passes follow from it"},
    )
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "rows in a forward pass, per device; with tokens_per_step, at most"}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "forward passes in an optimizer step, where tokens_per_step is not stated"}
    )
    optimizer: str = field(
        default="adamw",
        metadata={"help": "adamw, or another by `optim`; muon: Muon for the layers, AdamW for the rest"},
    )
    learning_rate: float = field(default=3e-4, metadata={"help": "peak learning rate"})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "schedule after warm-up"})
    lr_scheduler_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "settings of the schedule; default: {min_lr: 3e-5} for cosine_with_min_lr, else none"},
    )
    warmup_steps: float = field(default=1526, metadata={"help": "steps of linear warm-up; 1,526 = 50M tokens"})
    weight_decay: float = field(default=0.1, metadata={"help": "decoupled weight decay"})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's first-moment decay"})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second-moment decay"})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "AdamW's epsilon"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    bf16: bool | None = field(  # type: ignore[assignment]  # None, as in TRL: decided in `__post_init__`
        default=None, metadata={"help": "use bf16 autocast; default: true if the GPU supports it"}
    )
    compile_layers: bool | None = field(
        default=None, metadata={"help": "torch.compile each decoder layer; by default on a GPU"}
    )
    attention_kernel: str = field(
        default="auto", metadata={"help": "auto (PyTorch's default order for the GPU), flash, or cudnn"}
    )
    max_nonfinite_steps: int = field(
        default=5,
        metadata={"help": "a step whose loss or gradient is not finite is skipped; so many in a row stop the run"},
    )
    eval_strategy: str = field(default="steps", metadata={"help": "when to measure the validation loss"})
    eval_steps: float | None = field(default=1000, metadata={"help": "optimizer steps between validations"})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "rows in a validation pass, per device"})
    save_strategy: str = field(default="steps", metadata={"help": "when to save a checkpoint"})
    save_steps: float = field(default=1000, metadata={"help": "optimizer steps between checkpoints"})
    save_total_limit: int | None = field(default=3, metadata={"help": "newest checkpoints kept, and the best one"})
    metric_for_best_model: str | None = field(default="eval_loss", metadata={"help": "what the best checkpoint is"})
    logging_steps: float = field(default=10, metadata={"help": "optimizer steps between log lines"})
    report_to: list[str] | None = field(
        default_factory=lambda: ["tensorboard"], metadata={"help": "tensorboard, wandb, trackio, ..., all or none"}
    )
    dataloader_num_workers: int = field(default=2, metadata={"help": "processes that read and tokenise; 0 = none"})
    seed: int = field(default=0, metadata={"help": "of weights, and of the data's order without data_seed"})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "a checkpoint folder, or hf://user/name, to go on from, instead of the run's last complete one"
        },
    )
    allow_recipe_change: bool = field(
        default=False,
        metadata={
            "help": "go on from a checkpoint of another recipe; data whose place in it means nothing begin anew"
        },
    )
    push_to_hub: bool = field(default=False, metadata={"help": "push checkpoints and the final model to the Hub"})
    hub_model_id: str | None = field(default=None, metadata={"help": "repository on the Hub, user/name"})
    hub_strategy: str = field(
        default="every_save",
        metadata={
            "help": "end; every_save: weights, each checkpoint's in a branch; checkpoint: also the newest one's full "
            "state, which the same command on an empty disk goes on from"
        },
    )
    hub_private_repo: bool | None = field(default=None, metadata={"help": "make the repository a private one"})

    @property
    def sequences_per_step(self) -> int:
        """Rows of one optimizer step, over all devices."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def share_out(self, sequence_length: int) -> None:
        """Take from `tokens_per_step` how many rows of `sequence_length` tokens a pass has and how many passes a step.

        Raises:
            InputError: the processes cannot share the step's rows, or other passes are asked for as well.
        """
        if self.tokens_per_step is None:
            return
        rows = self.tokens_per_step / sequence_length
        if rows < 1 or rows % self.world_size:
            raise InputError(
                f"tokens_per_step: {self.tokens_per_step:,} tokens are {rows:g} rows of {sequence_length:,}, which "
                f"{self.world_size} process(es) cannot share"
            )
        share = int(rows) // self.world_size
        size, passes = equal_micro_batches(share, self.per_device_train_batch_size)
        if self.gradient_accumulation_steps not in (1, passes):
            raise InputError(
                f"gradient_accumulation_steps: {self.gradient_accumulation_steps} passes of {size} rows are not the "
                f"{share} rows of tokens_per_step; leave it out"
            )
        self.per_device_train_batch_size, self.gradient_accumulation_steps = size, passes

    def __post_init__(self) -> None:
        if self.compile_layers is None:
            whole = self.torch_compile or self.torch_compile_backend or self.torch_compile_mode
            self.compile_layers = torch.cuda.is_available() and not whole
        # Every weight takes part in every step, and no buffer ever changes: nothing to look for, nothing to send.
        self.ddp_find_unused_parameters = self.ddp_broadcast_buffers = False
        # Trainer would replay and tokenise every batch seen so far; our rows carry their position (data.mixture).
        self.ignore_data_skip = True
        # The filter hides a NaN behind the mean of earlier losses and costs a device synchronisation a step.
        self.logging_nan_inf_filter = False
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == SchedulerType.COSINE_WITH_MIN_LR:
            self.lr_scheduler_kwargs = {"min_lr": 3e-5}
        if self.greater_is_better is None:  # Trainer knows of names that end in loss only
            self.greater_is_better = "accuracy" in (self.metric_for_best_model or "")
        check_numbers(self, max_steps=1, max_nonfinite_steps=1, tokens_per_step=1)
        check_choices(self, optimizer=OPTIMIZERS)
        check_trainer_options(self, **REFUSED)
        check_attention_kernel(self.attention_kernel)
        if "layerwise" in self.optim or (self.optimizer == "muon" and self.optim != OptimizerNames.ADAMW_TORCH_FUSED):
            raise InputError(
                f"optim: expected no layerwise one, and none beside `optimizer: muon`, found {self.optim}"
            )
        join_processes(self)
        super().__post_init__()
        check_built_options(self)


def equal_micro_batches(rows: int, at_most: int) -> tuple[int, int]:
    """The rows of a pass, as many as may be, and the number of passes that have all `rows` in equal parts."""
    size = max(size for size in range(1, min(rows, max(1, at_most)) + 1) if rows % size == 0)
    return size, rows // size
