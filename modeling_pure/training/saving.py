"""A Trainer with atomic checkpoints, which a signal stops without losing anything.

A checkpoint of sharded weights (FSDP2) is that of one process, whole tensors under the same names and numbers: a run
can resume on any number of processes, sharded or not, and every checkpoint can be loaded.
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

STAGING = "_unfinished"  # what is being written; a run that was killed while it wrote leaves it behind


class DurableTrainer(Trainer):
    """What the trainers of both phases share, to stand before a class of transformers or TRL.

    A checkpoint is written under another name, flushed to the disk and renamed; with `push_to_hub` it then goes to the
    Hub. `save_total_limit` counts the newest ones; the best one is kept beside them.
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
            config.num_real_tokens = min(len(tokenizer), config.vocab_size)  # it uses some of the spare ids
        if self.args.warmup_steps > self.args.max_steps > 0:
            logger.warning(
                f"warmup_steps: {self.args.warmup_steps:g} are more than max_steps {self.args.max_steps}: this run "
                f"never reaches its learning rate of {self.args.learning_rate:g}"
            )
        # Trainer would count the best one among the newest, and with a limit of 1 delete the last at the end.
        self.checkpoints_kept, self.args.save_total_limit = self.args.save_total_limit, None
        if self.args.hub_token:  # Trainer pickles its arguments into every checkpoint
            os.environ["HF_TOKEN"], self.args.hub_token = self.args.hub_token, None
        self.publisher = Publisher(self.args, self.hub_model_id) if self.hub_model_id else None
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        self.recipe: dict[str, Any] = {}  # what checkpoints say that they were made with
        self.restored: Path | None = None  # the checkpoint that `restore` was called for
        self._staging: Path | None = None

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; a run that was stopped after its last step only loads its state.

        Args:
            resume_from_checkpoint: a folder; or True, the last complete checkpoint of the run, as in Trainer.

        Raises:
            RunInterrupted: a signal has stopped the run; it has saved a checkpoint.
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
            self.restored = None  # training leaves what was restored behind
            if self.has_finished(checkpoint):
                # Trainer would make one step too many.
                self.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
                self._load_from_checkpoint(str(self.best_saved()[0] if self.ends_with_best else checkpoint))
                return TrainOutput(self.state.global_step, 0.0, {})
            if self.args.should_save:
                leave_later_checkpoints(checkpoint, self._run_folder)
        try:
            result = super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)
            self.stop_on_signal.raise_if_stopped(self.state)
        except (RunInterrupted, RunStopped):
            if self.publisher:  # the last checkpoint may be all that outlives this machine
                self.publisher.wait(patient=False)
            raise
        return result

    def few_rows(self) -> Any:
        """Rows of `eval_dataset` to rehearse with: two for each process, and one of each answer format."""
        rows = self.eval_dataset
        formats = rows["answer_format"][:] if "answer_format" in rows.column_names else []
        first_ones = {formats.index(name) for name in set(formats)}
        return rows.select(sorted({*range(min(len(rows), 2 * self.args.world_size)), *first_ones}))

    def restore(self, checkpoint: Path) -> None:
        """Restore what Trainer does not. `train` calls this, unless it was called before to find faults early.

        Raises:
            InputError: the checkpoint is not complete, or was written by another kind of run.
        """
        complete_step(checkpoint)
        self.restored = checkpoint

    @property
    def _run_folder(self) -> Path:
        return Path(folder_of(self.args))

    @property
    def ends_with_best(self) -> bool:
        """Whether the run ends with the best checkpoint's weights: asked for, measured, and still on this disk."""
        best, _, _ = self.best_saved()
        return bool(self.args.load_best_model_at_end and best) and not checkpoint_fault(cast(Path, best))

    def best_saved(self) -> tuple[Path | None, int, float]:
        """The best checkpoint of the run, its step and its metric; (None, 0, nan) if none was measured.

        The best validation, which `TrainerState` holds, may be of a step that was not saved.
        """
        metric = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        lines = [line for line in self.state.log_history if not math.isnan(line.get(metric, math.nan))]
        measured = {line["step"]: line[metric] for line in lines}
        written = checkpoint_folders(self._staging) if self._staging else []  # about to have its name
        saved = {step for step, _ in [*checkpoint_folders(self._run_folder), *written] if step in measured}
        if not saved:
            return None, 0, math.nan
        step = (max if self.args.greater_is_better else min)(sorted(saved), key=measured.__getitem__)
        return self._run_folder / f"checkpoint-{step}", step, measured[step]

    def has_finished(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is that of the last step, or epoch."""
        step = complete_step(checkpoint)
        if self.args.max_steps > 0:
            return bool(step >= self.args.max_steps)
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        return bool(step >= state.max_steps and (state.epoch or 0) >= self.args.num_train_epochs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; into the run's own folder atomically, file by file."""
        if output_dir or _internal_call:
            return super().save_model(output_dir, _internal_call)
        run_folder = self._run_folder
        with self._staged() as staging:
            super().save_model(str(staging), _internal_call=True)
            if self.args.should_save:
                flush(staging)
                for file in staging.iterdir():
                    os.replace(file, run_folder / file.name)
                (run_folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # of a former version
        return None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the model, without a pickle of the arguments, which holds this machine's paths and nobody reads."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self._run_folder)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            follow_umask([*folder.glob("*.safetensors"), *folder.glob("*/adapter_model.safetensors")])

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository of the run; not while Trainer is built, since the run may still be refused."""
        if self.is_world_process_zero():
            is_built = hasattr(self, "stop_on_signal")
            self.hub_model_id = create_repository(self.args) if is_built else repository_id(self.args)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]  # pushes in several commits
        """Push the run's folder, or raise `RunStopped`; Trainer's would save the model again, on all ranks."""
        if not self.hub_model_id:
            self.init_hf_repo()
        if self.is_world_process_zero():
            self.publisher = self.publisher or Publisher(self.args, repository_id(self.args))
            self.publisher.finish()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave the card to the run: Trainer's would replace ours, which says what the model is not for."""

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        # Trainer would use the intervals of the checkpoint, whatever the arguments say now.
        result = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        return result

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both; with `allow_recipe_change` learning rate, weight decay and the like are those of this recipe."""
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
        state = whole(cast(Any, self.optimizer).state_dict(), keep=self.args.should_save)
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
        """Take the next step at the rate of this run's schedule: the checkpoint's may be that of a shorter run."""
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
            self.accelerator.wait_for_everyone()  # every rank has written its part
            best, _, _ = self.best_saved()
            self.state.best_model_checkpoint = str(best) if best else None
            if self.args.should_save:
                if self.recipe:
                    (staging / name / CHECKPOINT_RECIPE).write_text(json.dumps(self.recipe, indent=2) + "\n")
                self.state.save_to_json(str(staging / name / STATE_FILE))
                self._write_card(staging / name)
                write_file_list(staging / name)  # last, over all other files
                if fault := checkpoint_fault(staging / name):
                    raise RunStopped(f"output_dir: {name} could not be resumed: {fault}")
                flush(staging / name)
                replace_folder(staging / name, run_folder / name)
                self._delete_old_checkpoints()
        if self.publisher:
            self.publisher.push(run_folder / name)

    def _write_card(self, checkpoint: Path) -> None:
        """Say what a checkpoint is, and is not for: it is loaded, and pushed, like a finished model."""
        losses = [line["loss"] for line in self.state.log_history if "loss" in line]
        facts = {"step": f"{self.state.global_step:,} of {self.state.max_steps:,}"}
        if losses:
            facts["last training loss"] = f"{losses[-1]:.4f}"
        title = f"Pure, in training, step {self.state.global_step:,}"
        write_model_card(str(checkpoint), title, self.model.config, {"In training": facts}, [])

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: Trainer calls this while the checkpoint has a temporary name."""

    def _delete_old_checkpoints(self) -> None:
        if not self.checkpoints_kept:
            return
        # Later ones are damaged, or were left when the run went back.
        folders = [folder for step, folder in checkpoint_folders(self._run_folder) if step <= self.state.global_step]
        pushed = self.publisher.busy if self.publisher else set()
        for folder in folders[: -self.checkpoints_kept]:
            if str(folder) != self.state.best_model_checkpoint and folder not in pushed:
                shutil.rmtree(folder)

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A temporary folder to write in; a full disk stops the run and leaves all other files alone."""
        run_folder = self._run_folder
        staging = run_folder / STAGING
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
                f"output_dir: cannot write to '{run_folder}' at step {self.state.global_step}: {first_line(error)}; "
                "earlier checkpoints are intact. Make room, and the same command continues from there"
            ) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)


def is_write_error(error: Exception) -> bool:
    """Whether a file could not be written; torch.save has no error class of its own for that."""
    zip_writer = ("inline_container", "PytorchStreamWriter", "iostream error")
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in zip_writer)
    return not isinstance(error, ConnectionError)


def leave_later_checkpoints(checkpoint: Path, run_folder: Path) -> None:
    """Rename checkpoints that a run saved after the one that it returns to: they would count as its newest."""
    for step, folder in checkpoint_folders(run_folder):
        if folder.resolve().parent == checkpoint.resolve().parent and step > complete_step(checkpoint):
            aside = folder.with_name(f"_left-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder, aside)
            print(f"{folder} is now {aside.name}: the run continues from {checkpoint.name}")


def flush(folder: Path) -> None:
    """Write everything in a folder to the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_folder(new: Path, place: Path) -> None:
    """Rename a folder, replacing one that has the name already."""
    if place.exists():
        os.rename(place, new.with_name("replaced"))
    os.rename(new, place)
    descriptor = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def whole(state: Any, keep: bool) -> Any:
    """Gather the sharded tensors of a state on the CPU, or drop them unless `keep`; to be called by all processes."""

    def gather(tensor: DTensor) -> torch.Tensor | None:
        gathered = tensor.full_tensor()
        return gathered.cpu() if keep else None

    return tree_map_only(DTensor, gather, state)


def shard(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's shard of a whole tensor, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights; each process keeps its shard."""
    own = model.state_dict()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  is no mapping
                own[name].copy_(shard(weights.get_tensor(name), own[name]))


def load_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Load an optimizer's whole state; each process keeps its shard."""
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
