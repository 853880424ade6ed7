"""A Trainer with atomic checkpoints that a signal can stop without losing work.

Under FSDP2, checkpoints hold unsharded tensors in the format of a single process, so that a run can resume on any
number of processes, sharded or not, and every checkpoint can be loaded as a model.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput

from ..atomic import follow_umask
from ..errors import InputError, RunInterrupted, RunStopped, first_line
from ..model_card import write_model_card
from .checkpoint import (
    STATE_FILE,
    checkpoint_fault,
    checkpoint_folders,
    complete_step,
    last_complete_checkpoint,
    write_file_list,
)
from .hub import Publisher, create_repository, repository_id
from .launch import check_engine
from .run_folder import CHECKPOINT_RECIPE, folder_of, keep_tensorboard_inside
from .signals import StopOnSignal

logger = logging.getLogger(__name__)

STAGING = "_unfinished"  # the folder to write in; left behind if the run is killed while writing


class DurableTrainer(Trainer):
    """Base of the trainers of both phases, listed before a Trainer class of transformers or TRL.

    A checkpoint is written under a temporary name, flushed to disk and renamed; `push_to_hub` then pushes it in the
    background. `save_total_limit` counts the newest checkpoints; the best one is kept in addition.
    """

    args: Any  # a `TrainingArguments` with `RunOptions`
    model: PreTrainedModel
    hub_model_id: str | None  # type: ignore[assignment]  # inferred as None
    eval_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keep_tensorboard_inside(self)
        check_engine(self.args, self.accelerator)
        if self.is_fsdp_enabled:
            plugin = cast(Any, self.accelerator.state).fsdp_plugin
            if plugin.fsdp_version != 2:
                raise InputError(
                    "fsdp_version: 1 is not supported; set it to 2, as accelerate_configs/fsdp2.yaml does"
                )
            plugin.set_state_dict_type("FULL_STATE_DICT")  # else Trainer would end without a model
        config, tokenizer = cast(Any, self.model.config), cast(Any, self.processing_class)
        if tokenizer is not None and 0 < (getattr(config, "num_real_tokens", None) or 0) < len(tokenizer):
            config.num_real_tokens = min(len(tokenizer), config.vocab_size)  # the tokenizer uses spare ids
        if self.args.warmup_steps > self.args.max_steps > 0:
            logger.warning(
                f"warmup_steps: {self.args.warmup_steps:g} exceeds max_steps {self.args.max_steps}: this run never "
                f"reaches its learning rate of {self.args.learning_rate:g}"
            )
        # Trainer counts the best checkpoint among the newest and, with a limit of 1, deletes the last one at the end.
        self.checkpoints_kept, self.args.save_total_limit = self.args.save_total_limit, None
        if self.args.hub_token:  # Trainer pickles its arguments into every checkpoint
            os.environ["HF_TOKEN"], self.args.hub_token = self.args.hub_token, None
        self.publisher = Publisher(self.args, self.hub_model_id) if self.hub_model_id else None
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        self.recipe: dict[str, Any] = {}  # written into every checkpoint
        self.restored: Path | None = None  # the checkpoint that `restore` has restored
        self._staging: Path | None = None

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; from the checkpoint of the last step, only load its state.

        Args:
            resume_from_checkpoint: a folder, or True for the run's last complete checkpoint, as in Trainer.

        Raises:
            RunInterrupted: a signal stopped the run after it saved a checkpoint.
            ValueError: the run has no complete checkpoint, as in Trainer.
        """
        if self.publisher:
            self.init_hf_repo()
        if resume_from_checkpoint is True:
            checkpoint = last_complete_checkpoint(self._run_folder)
            if checkpoint is None:
                raise ValueError(f"No valid checkpoint found in output directory ({self.args.output_dir})")
        else:
            checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint:
            if checkpoint != self.restored:
                self.restore(checkpoint)
            self.restored = None  # training changes the restored state
            if self.has_finished(checkpoint):  # Trainer would take one more step
                self.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
                self._load_from_checkpoint(str(self.best_saved()[0] if self.ends_with_best else checkpoint))
                return TrainOutput(self.state.global_step, 0.0, {})
            if self.args.should_save:
                set_later_checkpoints_aside(checkpoint, self._run_folder)
        try:
            result = super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)
            self.stop_on_signal.raise_if_stopped(self.state)
        except (RunInterrupted, RunStopped):
            if self.publisher:  # this machine may be about to disappear
                self.publisher.wait(patient=False)
            raise
        return result

    def few_rows(self) -> Any:
        """Rows of `eval_dataset` for a rehearsal: two per process, and one of each answer format."""
        rows = self.eval_dataset
        formats = rows["answer_format"][:] if "answer_format" in rows.column_names else []
        first_ones = {formats.index(name) for name in set(formats)}
        return rows.select(sorted({*range(min(len(rows), 2 * self.args.world_size)), *first_ones}))

    def restore(self, checkpoint: Path) -> None:
        """Restore what Trainer does not; `train` calls this unless the caller already has, to find errors early.

        Raises `InputError` if the checkpoint is incomplete or was written by another kind of run.
        """
        complete_step(checkpoint)
        self.restored = checkpoint

    @property
    def _run_folder(self) -> Path:
        return Path(folder_of(self.args))

    @property
    def ends_with_best(self) -> bool:
        """Whether the run ends with the best checkpoint's weights: requested, measured, and still on this disk."""
        best, _, _ = self.best_saved()
        return bool(self.args.load_best_model_at_end and best) and not checkpoint_fault(cast(Path, best))

    def best_saved(self) -> tuple[Path | None, int, float]:
        """The run's best checkpoint, its step and its metric; (None, 0, nan) if none was measured.

        `TrainerState.best_metric` may belong to a step that was not saved.
        """
        metric = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        lines = [line for line in self.state.log_history if not math.isnan(line.get(metric, math.nan))]
        measured = {line["step"]: line[metric] for line in lines}
        unnamed = checkpoint_folders(self._staging) if self._staging else []  # being written
        saved = {step for step, _ in [*checkpoint_folders(self._run_folder), *unnamed] if step in measured}
        if not saved:
            return None, 0, math.nan
        step = (max if self.args.greater_is_better else min)(sorted(saved), key=measured.__getitem__)
        return self._run_folder / f"checkpoint-{step}", step, measured[step]

    def has_finished(self, checkpoint: Path) -> bool:
        """Whether a checkpoint was saved after the last step or epoch."""
        step = complete_step(checkpoint)
        if self.args.max_steps > 0:
            return bool(step >= self.args.max_steps)
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        return bool(step >= state.max_steps and (state.epoch or 0) >= self.args.num_train_epochs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; in the run folder, each file is replaced atomically."""
        if output_dir or _internal_call:
            return super().save_model(output_dir, _internal_call)
        run_folder = self._run_folder
        with self._staged() as staging:
            super().save_model(str(staging), _internal_call=True)
            if self.args.should_save:
                flush(*staging.rglob("*"))
                for file in staging.iterdir():
                    os.replace(file, run_folder / file.name)
        return None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the model without Trainer's pickle of the arguments, which nothing reads."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self._run_folder)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            follow_umask([*folder.glob("*.safetensors"), *folder.glob("*/adapter_model.safetensors")])

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the run's repository, but not from Trainer's constructor: the run may still be refused."""
        if self.is_world_process_zero():
            is_built = hasattr(self, "stop_on_signal")
            self.hub_model_id = create_repository(self.args) if is_built else repository_id(self.args)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]  # pushes in several commits
        """Push the run folder, or raise `RunStopped`; Trainer would save the model again, on all ranks."""
        if not self.hub_model_id:
            self.init_hf_repo()
        if self.is_world_process_zero():
            self.publisher = self.publisher or Publisher(self.args, repository_id(self.args))
            self.publisher.finish()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Keep our card, with its disclaimer; Trainer would replace it."""

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        # Trainer takes the intervals from the checkpoint and ignores the current arguments.
        result = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        return result

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both; under `allow_recipe_change`, learning rate, weight decay etc. come from the current recipe."""
        groups = cast(Any, self.optimizer).param_groups
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        if checkpoint and self.is_fsdp_enabled:
            load_optimizer(cast(Any, self.optimizer), Path(checkpoint, OPTIMIZER_NAME))
            schedule = cast(LambdaLR, self.lr_scheduler)
            schedule.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        if not checkpoint or not isinstance(self.lr_scheduler, LambdaLR):
            return
        if self.args.allow_recipe_change:
            self.lr_scheduler.base_lrs = [given["initial_lr"] for given in settings]
            for group, given in zip(cast(Any, self.optimizer).param_groups, settings, strict=True):
                group.update(given)
        self._follow_schedule(self.lr_scheduler)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = unsharded(cast(Any, self.optimizer).state_dict(), keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(cast(LambdaLR, self.lr_scheduler).state_dict(), Path(output_dir, SCHEDULER_NAME))
        return None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        return load_weights(model or self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if not self.is_fsdp_enabled:
            return super()._load_best_model()
        return self._load_from_checkpoint(cast(str, self.state.best_model_checkpoint))

    def _follow_schedule(self, schedule: LambdaLR) -> None:
        """Set the next step's learning rate from this run's schedule; the checkpoint's run may have been shorter."""
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        schedule._last_lr = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
        for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
            group["lr"] = rate

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_folder, name = self._run_folder, f"checkpoint-{self.state.global_step}"
        with self._staged() as staging:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # until every rank has written its part
            best, _, _ = self.best_saved()
            self.state.best_model_checkpoint = str(best) if best else None
            if self.args.should_save:
                if self.recipe:
                    (staging / name / CHECKPOINT_RECIPE).write_text(json.dumps(self.recipe, indent=2) + "\n")
                self.state.save_to_json(str(staging / name / STATE_FILE))
                self._write_card(staging / name)
                write_file_list(staging / name)  # last: it covers all other files
                if fault := checkpoint_fault(staging / name):
                    raise RunStopped(f"output_dir: {name} could not be resumed: {fault}")
                flush(*(staging / name).rglob("*"), staging / name)
                replace_folder(staging / name, run_folder / name)
                self._delete_old_checkpoints()
        if self.publisher:
            self.publisher.push(run_folder / name)

    def _write_card(self, checkpoint: Path) -> None:
        """Write a card with the disclaimer: checkpoints are loaded and pushed like finished models."""
        losses = [line["loss"] for line in self.state.log_history if "loss" in line]
        facts = {"step": f"{self.state.global_step:,} of {self.state.max_steps:,}"}
        if losses:
            facts["last training loss"] = f"{losses[-1]:.4f}"
        title = f"Pure, in training, step {self.state.global_step:,}"
        write_model_card(str(checkpoint), title, self.model.config, {"In training": facts}, [])

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: Trainer calls this before the checkpoint has its name."""

    def _delete_old_checkpoints(self) -> None:
        if not self.checkpoints_kept:
            return
        # Later checkpoints are damaged, or from before the run was resumed at an earlier step.
        folders = [folder for step, folder in checkpoint_folders(self._run_folder) if step <= self.state.global_step]
        pushed = self.publisher.busy if self.publisher else set()
        for folder in folders[: -self.checkpoints_kept]:
            if str(folder) != self.state.best_model_checkpoint and folder not in pushed:
                shutil.rmtree(folder)

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A temporary folder to write in; a full disk raises `RunStopped` and leaves all other files intact."""
        staging = self._run_folder / STAGING
        try:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._staging = staging
            yield staging
            self.accelerator.wait_for_everyone()
        except (OSError, SafetensorError, RuntimeError) as error:
            if not is_write_error(error):
                raise
            raise RunStopped(
                f"output_dir: cannot write to '{self._run_folder}' at step {self.state.global_step}: "
                f"{first_line(error)}; earlier checkpoints are intact. Free disk space and run the same command again"
            ) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)


def is_write_error(error: Exception) -> bool:
    """Whether a file could not be written; torch.save raises a plain RuntimeError for that."""
    zip_writer = ("inline_container", "PytorchStreamWriter", "iostream error")
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in zip_writer)
    return not isinstance(error, ConnectionError)


def set_later_checkpoints_aside(checkpoint: Path, run_folder: Path) -> None:
    """Rename the checkpoints after the one to resume from, which would count as the newest."""
    for step, folder in checkpoint_folders(run_folder):
        if folder.resolve().parent == checkpoint.resolve().parent and step > complete_step(checkpoint):
            aside = folder.with_name(f"_left-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder, aside)
            print(f"renamed {folder} to {aside.name}: the run continues from {checkpoint.name}")


def flush(*paths: Path) -> None:
    """Write files, and the entries of folders, to disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def replace_folder(new: Path, place: Path) -> None:
    """Rename a folder, replacing any existing one of that name."""
    if place.exists():
        os.rename(place, new.with_name("replaced"))
    os.rename(new, place)
    flush(place.parent)


def unsharded(state: Any, keep: bool) -> Any:
    """Gather a state's sharded tensors on the CPU, or drop them unless `keep`; all processes must call this."""

    def gather(tensor: DTensor) -> torch.Tensor | None:
        gathered = tensor.full_tensor()
        return gathered.cpu() if keep else None

    return tree_map_only(DTensor, gather, state)


def shard(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's shard of a full tensor, sharded like `like`."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights; each process keeps its shard."""
    own = model.state_dict()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  not a mapping
                own[name].copy_(shard(weights.get_tensor(name), own[name]))


def load_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Load an optimizer's full state; each process keeps its shard."""
    saved = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved["state"] = {
        number: {
            name: shard(value, parameters[number]) if value.shape == parameters[number].shape else value
            for name, value in state.items()
        }
        for number, state in saved["state"].items()
    }
    optimizer.load_state_dict(saved)
