"""Checks of Trainer's options before anything is built: what Trainer finds out later, or with a traceback."""

import math
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from ..errors import InputError, first_line
from ..options import check_above_zero, check_choices, check_numbers, check_output_folder, check_seeds
from .run_folder import folder_of

LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    "ddp_timeout": 1,
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"), 0),
    **dict.fromkeys(("save_total_limit", "dataloader_num_workers"), 0),
}


def check_trainer_options(args: TrainingArguments) -> None:
    """Raise `InputError` for a word, number or folder that no run can use. Call it before Trainer's own checks."""
    check_choices(
        args,
        lr_scheduler_type=SchedulerType,
        eval_strategy=IntervalStrategy,
        logging_strategy=IntervalStrategy,
        save_strategy=SaveStrategy,
        hub_strategy=HubStrategy,
        optim=OptimizerNames,
    )
    check_numbers(args, **LEAST)
    check_above_zero(args, "eval_steps", "save_steps", "logging_steps")
    check_seeds(args, "seed", "data_seed")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(args, name) < 1:
            raise InputError(f"{name}: expected a number from 0 to below 1, found {getattr(args, name)}")
    check_output_folder("output_dir", folder_of(args))


def check_schedule(args: TrainingArguments) -> None:
    """Build the learning rate schedule and look at its rates.

    Raises:
        InputError: transformers cannot build it with these settings, or it gives a rate that is not a number.
    """
    kind, steps = SchedulerType(args.lr_scheduler_type), args.max_steps if args.max_steps > 0 else 1000
    settings = cast(dict[str, Any] | None, args.lr_scheduler_kwargs)  # a string has been parsed
    try:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=args.learning_rate)
        schedule = get_scheduler(kind, optimizer, args.get_warmup_steps(steps), steps, settings)
        factors = schedule.lr_lambdas if isinstance(schedule, LambdaLR) else []
        rates = [factor(step) for factor in factors for step in (0, steps // 2, steps)]
        if not all(map(math.isfinite, rates)):
            raise ValueError(f"it gives the rates {rates}")
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
