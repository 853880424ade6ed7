"""Options shared by both phases, and checks of Trainer's own options before Trainer fails late or with a traceback."""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames, trainer_log_levels

from ..errors import InputError, first_line
from ..options import (
    check_above_zero,
    check_choices,
    check_numbers,
    check_output_folder,
    check_seeds,
    check_texts,
    option,
)
from .kernels import ATTENTION_KERNELS
from .launch import check_processes, choose_bf16, join_processes
from .run_folder import folder_of

if TYPE_CHECKING:  # for its fields; at run time RunOptions is a mixin before TrainingArguments or GRPOConfig
    Options = TrainingArguments
else:
    Options = object

LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    "ddp_timeout": 1,
    **dict.fromkeys(("weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"), 0),
    **dict.fromkeys(("save_total_limit", "dataloader_num_workers", "neftune_noise_alpha"), 0),
}
NO_PREDICTIONS = "evaluation computes its own metrics and gathers no predictions"
NO_PRECISION = "evaluation runs in the precision of training"
FIXED_ORDER = "data_seed sets the order of the data"
# Options without effect, or with a harmful one: refused unless at Trainer's default.
REFUSED = {
    "save_only_model": "a model-only checkpoint cannot be resumed",
    "fp16": "small gradients would underflow; the model trains in bf16 or fp32",
    "average_tokens_across_devices": "false makes gradients too small by a factor of the number of ranks",
    "auto_find_batch_size": "a step would lose sequences; set per_device_train_batch_size",
    "label_smoothing_factor": "the losses here do not smooth labels",
    "accelerator_config": "the run itself distributes batches over processes",
    "parallelism_config": "only data parallelism and FSDP are supported",
    "enable_jit_checkpoint": "a signal always saves a checkpoint",
    "restore_callback_states_from_checkpoint": "a resumed run always restores the callbacks it needs",
    "hub_always_push": "the next checkpoint is pushed once the one before is complete",
    "dataloader_drop_last": "every batch is full",
    "dataloader_in_order": "resuming needs the data in order",
    "do_predict": "the scripts predict nothing after training",
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), "Liger supports neither this model nor GRPO's masks"),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), NO_PRECISION),
    **dict.fromkeys(("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"), NO_PREDICTIONS),
    **dict.fromkeys(("batch_eval_metrics", "include_for_metrics", "label_names"), NO_PREDICTIONS),
    **dict.fromkeys(("train_sampling_strategy", "length_column_name"), FIXED_ORDER),
}
COMPILE_MODES = (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
RESOLVED = {"accelerator_config": AcceleratorConfig()}  # what Trainer makes of None
CHECKPOINTING = {"use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop"}
MAY_BE_PATHS = ("accelerator_config", "fsdp_config", "deepspeed")

LOWER_IS_BETTER = ("loss", "nll", "bits_per_byte", "perplexity", "standard_error")


@dataclass
class RunOptions(Options):
    """Precision, checkpoints, logging and the Hub; a mixin to list before the library's class."""

    # Options that must not change when a run resumes.
    FIXED: ClassVar[tuple[str, ...]] = (
        *("seed", "data_seed", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
        *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim_args"),
    )
    # Options that a checkpoint's tensors depend on.
    TENSORS: ClassVar[tuple[str, ...]] = ("optim",)

    bf16: bool | None = option(  # type: ignore[assignment]  # None, as in TRL: decided in `__post_init__`
        None, "train under bf16 autocast; default: true if the GPU supports it"
    )
    attention_kernel: str = option("auto", "auto (PyTorch's choice), flash, or cudnn")
    eval_strategy: str = option("steps", "when to evaluate: steps, epoch or no")
    save_total_limit: int | None = option(3, "number of newest checkpoints to keep besides the best one")
    logging_steps: float = option(10, "optimizer steps between log lines")
    report_to: list[str] | None = option(["tensorboard"], "tensorboard, wandb, trackio, ..., all or none")
    resume_from_checkpoint: str | None = option(
        None, "checkpoint to resume from: a folder or hf://user/name; default: the run's last complete one"
    )
    allow_recipe_change: bool = option(
        False, "resume with another recipe; the data restart if their saved position no longer applies"
    )
    push_to_hub: bool = option(False, "push checkpoints and the final model to the Hub")
    hub_model_id: str | None = option(None, "repository on the Hub, user/name")
    hub_strategy: str = option(
        "every_save",
        "end; every_save: also the weights of each checkpoint, in a branch; checkpoint: also the newest one's full "
        "state, from which the same command resumes on another machine",
    )
    hub_private_repo: bool | None = option(None, "create a private repository")

    def __post_init__(self) -> None:
        if self.greater_is_better is None:  # Trainer only recognises names that end in loss
            self.greater_is_better = not any(kind in (self.metric_for_best_model or "") for kind in LOWER_IS_BETTER)
        check_choices(self, attention_kernel=ATTENTION_KERNELS)
        join_processes(self)
        super().__post_init__()
        check_built_options(self)


def check_trainer_options(args: TrainingArguments, **refused: str) -> None:
    """Fill in this machine's defaults, and check what Trainer checks late or never; runs before its own checks.

    Args:
        refused: options that this phase refuses in addition to `REFUSED` -> the reason.

    Raises:
        InputError: an unusable word, number or folder, or an option without effect.
    """
    args.bf16 = choose_bf16(args.bf16)
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.cuda.is_available()
    args.report_to = args.report_to or "none"
    check_texts(args)
    refuse(args, {**REFUSED, **refused})
    filled_in = isinstance(args.fsdp_config, dict) and not any(args.fsdp_config.values())  # by older versions
    refuse_idle(args, "fsdp_config", bool(args.fsdp) or filled_in, "fsdp")
    low_rank = any(kind in args.optim for kind in ("galore", "apollo"))
    refuse_idle(args, "optim_target_modules", low_rank, "an `optim` of GaLore or APOLLO")
    check_choices(
        args,
        lr_scheduler_type=SchedulerType,
        eval_strategy=IntervalStrategy,
        logging_strategy=IntervalStrategy,
        save_strategy=[kind for kind in SaveStrategy if kind != SaveStrategy.BEST],  # steps also keeps the best one
        hub_strategy=HubStrategy,
        optim=OptimizerNames,
        log_level=trainer_log_levels,
        log_level_replica=trainer_log_levels,
        torch_compile_mode=COMPILE_MODES,
    )
    if args.torch_compile_backend is not None:  # listing them takes a second
        check_choices(args, torch_compile_backend=torch.compiler.list_backends(exclude_tags=()))
    check_numbers(args, **LEAST)
    check_above_zero(args, "learning_rate", "eval_steps", "save_steps", "logging_steps")
    check_seeds(args, "seed", "data_seed")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(args, name) < 1:
            raise InputError(f"{name}: expected a number from 0 to below 1, found {getattr(args, name)}")
    check_output_folder("output_dir", folder_of(args))


def seed_of_data(args: TrainingArguments) -> int:
    """The seed for the order of documents, questions and options."""
    return args.seed if args.data_seed is None else args.data_seed


def refuse(args: TrainingArguments, reasons: dict[str, str]) -> None:
    """Raise `InputError` with the reason if one of these options is not at Trainer's default."""
    for name in changed(args, TrainingArguments):
        if name in reasons:
            raise InputError(f"{name}: {reasons[name]}")


def refuse_idle(args: TrainingArguments, prefix: str | tuple[str, ...], in_use: bool, needs: str) -> None:
    """Raise `InputError` if an option with this prefix was changed but what it `needs` is not in use."""
    for name in changed(args, type(args)):
        if name.startswith(prefix) and not in_use:
            raise InputError(f"{name}: has no effect without {needs}")


def changed(args: TrainingArguments, kind: type[Any]) -> list[str]:
    """The fields of a dataclass whose value in `args` is neither the default nor what Trainer makes of it."""
    names = []
    for one in dataclasses.fields(kind):
        default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        if getattr(args, one.name) not in (default, RESOLVED.get(one.name, default)):
            names.append(one.name)
    return names


def check_built_options(args: TrainingArguments) -> None:
    """Check what Trainer's own constructor has to resolve first; raises `InputError`."""
    for name in args._VALID_DICT_FIELDS:
        value = getattr(args, name)
        if name not in MAY_BE_PATHS and not isinstance(value, dict | None):
            raise InputError(f"{name}: expected a mapping, found {value!r}")
    wrong = set(args.gradient_checkpointing_kwargs or {}) - CHECKPOINTING
    if wrong:
        raise InputError(f"gradient_checkpointing_kwargs: unknown {sorted(wrong)}; expected {sorted(CHECKPOINTING)}")
    if not all("=" in setting for setting in (args.optim_args or "=").split(",")):
        raise InputError(f"optim_args: expected name=value, name=value, found '{args.optim_args}'")
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs but one process: use torchrun --nproc_per_node={args.n_gpu}, or choose one GPU by "
            "CUDA_VISIBLE_DEVICES=0"
        )
    check_processes(args)
    check_schedule(args)
    check_trackers(args)


def check_schedule(args: TrainingArguments) -> None:
    """Raise `InputError` if transformers cannot build the schedule, or its learning rates are not finite."""
    kind, steps = SchedulerType(args.lr_scheduler_type), args.max_steps if args.max_steps > 0 else 1000
    settings = cast(dict[str, Any] | None, args.lr_scheduler_kwargs)  # a string has been parsed
    try:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=args.learning_rate)
        schedule = get_scheduler(kind, optimizer, args.get_warmup_steps(steps), steps, settings)
        factors = schedule.lr_lambdas if isinstance(schedule, LambdaLR) else []
        rates = [factor(step) for factor in factors for step in (0, steps // 2, steps)]
        if not all(map(math.isfinite, rates)):
            raise ValueError(f"its factors are {rates}")
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"lr_scheduler_kwargs: {settings} does not fit lr_scheduler_type {kind.value}: {first_line(error)}"
        ) from error


def check_trackers(args: TrainingArguments) -> None:
    """Raise `InputError` for a tracker in `report_to` that does not exist or is not installed."""
    for name in args.report_to or []:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ["all", "none", *INTEGRATION_TO_CALLBACK]
            raise InputError(f"report_to: expected one of {known}, found {name!r}")
        if name not in (*get_available_reporting_integrations(), "flyte"):
            raise InputError(f"report_to: {name} is not installed; pip install {name.replace('_', '-')}, or set none")
