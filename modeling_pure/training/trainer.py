"""`transformers.Trainer` on the mixture: it always knows which rows it has trained on, and resumes after them."""

import gc
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial, reduce
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from ..data.mixture import collate_sequences, document_boundaries
from ..data.states import Progress, RankState, TokenSequence, TrainingData
from ..errors import InputError, RunStopped
from ..medqa.questions import Question
from ..modeling_pure import PureForCausalLM
from .arguments import PureTrainingArguments
from .checkpoint import callback_attributes, checkpoint_folders, checkpoint_step, complete_step
from .health import NonFiniteGuard, NotFinite, loss_spike
from .kernels import choose_attention_kernel, compile_layers, separate_documents_by_lengths
from .optimizer import muon_with_adamw
from .report import model_flops
from .run_folder import CHECKPOINT_RECIPE, Recipe
from .saving import DurableTrainer
from .signals import leave_signals_to_the_run
from .throughput import Throughput, device_peak
from .validation import dev_metrics, loss_metrics, sequence_nats, token_bytes

logger = logging.getLogger(__name__)


class DataPosition(TrainerCallback, ExportableState):
    """Where every rank is in its data. As a stateful callback it is saved in trainer_state.json, written last."""

    def __init__(self) -> None:
        self.workers: dict[str, Any] = {}  # this rank's data-loader workers: the state after their last batch
        self.last_worker = 0
        self.ranks: list[RankState[Any]] = []

    def advance(self, data_state: Any) -> None:
        """Note the state of a batch that is being trained on."""
        self.last_worker = data_state["worker"]
        self.workers[str(self.last_worker)] = data_state

    def state(self) -> dict[str, Any]:
        """What goes into the checkpoint: the positions of all ranks."""
        return {"args": {}, "attributes": {"ranks": self.ranks}}


def resume_data(checkpoint: str | Path, dataset: TrainingData[Any], args: PureTrainingArguments) -> str | None:
    """Put the data where it was when a checkpoint was written; returns what changes for the user, if anything does.

    Raises:
        InputError: another kind of run wrote the checkpoint, or one with other sources and no `allow_recipe_change`.
    """
    ranks: list[RankState[Any]] = callback_attributes(checkpoint, DataPosition.__name__)["ranks"]
    try:
        return dataset.resume(ranks, max(1, args.dataloader_num_workers))
    except InputError as error:
        if not args.allow_recipe_change:
            raise
        return f"the data begin anew: {error}"


def check_given(args: Any, train_dataset: Any, eval_dataset: Any, **others: Any) -> TrainingData[Any]:
    """The training rows, once everything that `PureTrainer` is given has been looked at.

    Raises:
        InputError: something that Trainer takes and a run on a mixture does not.
    """
    wanted = {"args": PureTrainingArguments, "train_dataset": TrainingData, "eval_dataset": list}
    for (name, kind), given in zip(wanted.items(), (args, train_dataset, eval_dataset or []), strict=True):
        if not isinstance(given, kind):
            cure = "; transformers.Trainer takes other data, and trains this model as any other"
            raise InputError(f"{name}: expected a {kind.__name__}, found a {type(given).__name__}{cure}")
    for name in ("data_collator", "compute_metrics", "preprocess_logits_for_metrics"):
        if others.get(name) is not None:
            raise InputError(f"{name}: a mixture has its own batches, and evaluation its own metrics; leave it out")
    return cast(TrainingData[Any], train_dataset)


class PureTrainer(DurableTrainer):
    """A Trainer for `Mixture`. Every rank builds its own batches; none waits for rank 0, and no step for its host.

    Takes what `Trainer` takes, in its order, but for data of another kind.

    Args:
        eval_dataset: held-out rows with the name of their `source`, in the mixture or outside it.
        document_mask: whether the documents of a row are kept from attending to each other.
        questions: MedQA dev questions to answer at each validation.
        recipe: what a checkpoint says it was made with (`run_folder.check_recipe`).

    Raises:
        InputError: it is given what it cannot use, or questions or Muon under FSDP.
    """

    model: PureForCausalLM
    args: PureTrainingArguments
    train_dataset: TrainingData[Any]
    eval_dataset: list[TokenSequence[Any]]
    data_collator: Callable[[list[TokenSequence[Any]]], dict[str, Any]]
    optimizer: Any  # what accelerate wraps around it has no types

    def __init__(
        self,
        model: Any = None,
        args: PureTrainingArguments | None = None,
        data_collator: None = None,
        train_dataset: TrainingData[Any] | None = None,
        eval_dataset: list[TokenSequence[Any]] | None = None,
        *more: Any,
        document_mask: bool = False,
        questions: list[Question] | None = None,
        recipe: Recipe | None = None,
        **kwargs: Any,
    ) -> None:
        train_dataset = check_given(args, train_dataset, eval_dataset, data_collator=data_collator, **kwargs)
        self.data_position, self.tokenizer = DataPosition(), train_dataset.tokenizer
        self.document_end = self.tokenizer.eos_token_id if document_mask else None
        collator = partial(collate_sequences, document_end=self.document_end)
        super().__init__(model, args, collator, train_dataset, eval_dataset, *more, **kwargs)
        self.add_callback(self.data_position)
        if self.args.optimizer == "muon" and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise InputError("optimizer: muon needs whole matrices, which are cut up here; take adamw, or DDP")
        if self.is_deepspeed_enabled:
            logger.warning("DeepSpeed takes its steps by itself: those that are not finite are counted, not skipped")
        if self.is_fsdp_enabled and questions:
            raise InputError("medqa_dev_questions: ranks answer other questions, which FSDP does not allow; take DDP")
        self.questions, self.recipe = questions or [], recipe or {}
        self.token_bytes = token_bytes(self.tokenizer, self.model.config.vocab_size)
        self.micro_batch_size = self.args.train_batch_size  # fewer once a pass has run out of memory
        steps = self.args.logging_steps
        between = ceil(steps if steps >= 1 else steps * self.args.max_steps)
        kept = between + self.args.max_nonfinite_steps
        self.guard = NonFiniteGuard(self.args.max_nonfinite_steps, kept, self.args.device)
        peak = device_peak(self.args.device)
        self.throughput = Throughput(
            self.tokens_per_step,
            model_flops(self.model, train_dataset.sequence_length),
            peak and peak * self.args.world_size,
            self.args.device,
        )
        choose_attention_kernel(self.args.attention_kernel)
        if document_mask and self.args.bf16 and self.args.device.type == "cuda":
            separate_documents_by_lengths(self.model)
        if self.args.compile_layers:
            compile_layers(self.model)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all devices."""
        return self.args.sequences_per_step * self.train_dataset.sequence_length

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW as Trainer makes it, or Muon with AdamW."""
        if self.optimizer is None and self.args.optimizer == "muon":
            self.optimizer = muon_with_adamw(self.model, self.args)
        return super().create_optimizer(model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """With `allow_recipe_change` learning rate, weight decay and the like are those of this recipe."""
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule = self.lr_scheduler
        if checkpoint and self.args.allow_recipe_change and isinstance(schedule, LambdaLR):
            schedule.base_lrs = [given["initial_lr"] for given in settings]
            for group, given in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(given)
            self._follow_schedule()

    def get_train_dataloader(self) -> DataLoader[TokenSequence[Any]]:
        """A plain loader: the mixture already gives each rank its own rows, so accelerate must not share them out."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=leave_signals_to_the_run,
            generator=torch.Generator(),  # else it would draw from the one that a checkpoint has restored
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; with a checkpoint, first put the data where that checkpoint left it."""
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        self.throughput.start(complete_step(Path(checkpoint)) if checkpoint else 0)
        if checkpoint:
            resume_data(checkpoint, self.train_dataset, self.args)
            if workers := self.train_dataset.position:
                self.data_position.workers = dict(workers)
                self.data_position.last_worker = (self.train_dataset.first_worker - 1) % len(workers)
        return super().train(checkpoint, *args, **kwargs)

    # ---- one step -------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """The micro-batches of a step; remembered, in case they have to be run again or looked at."""
        try:
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        except RunStopped:
            # The data have ended, between two steps. Other ranks wait in the next step, not here, so that only a run
            # of one process can still save.
            if self.args.world_size == 1 and self.state.global_step:
                self._save_checkpoint(self.model, trial=None)
            raise
        self.guard.batches.append((self.state.global_step + 1, batches))
        return batches, num_items

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        # Rows are full, so the number is known without looking at them; Trainer's own count waits for the device.
        tokens = sum(batch["labels"].numel() - len(batch["labels"]) for batch in batch_samples)
        return torch.full((), tokens * self.args.world_size, device=device)

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch, a part of its rows at a time once memory has run out."""
        _, batches = self.guard.batches[-1]
        self.data_position.advance(inputs["data_state"])
        loss = self._pass(model, inputs, num_items_in_batch)
        while loss is None:
            self._take_fewer_rows()
            model.zero_grad()  # with what the pass left that did not end go those before it: run them all again
            before = batches[: next(i for i, batch in enumerate(batches) if batch is inputs)]
            losses = [self._pass(model, batch, num_items_in_batch) for batch in (*before, inputs)]
            loss = None if None in losses else losses[-1]
        return self.guard.count_loss(loss)

    def _pass(
        self, model: nn.Module, batch: dict[str, Any], num_items: torch.Tensor | int | None
    ) -> torch.Tensor | None:
        """The loss of a micro-batch, its gradients added to the others; None where memory has run out."""
        try:
            losses = (Trainer.training_step(self, model, piece, num_items) for piece in self._pieces(batch))
            return reduce(torch.add, losses)
        except torch.OutOfMemoryError:
            return None

    def _pieces(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """A micro-batch as the model takes it, cut into passes."""
        if self.micro_batch_size >= len(batch["input_ids"]):
            return [{name: value for name, value in batch.items() if name not in ("source", "data_state")}]
        pieces = []
        for ids in batch["input_ids"].split(self.micro_batch_size):
            borders = {} if self.document_end is None else document_boundaries(ids, self.document_end)
            pieces.append({"input_ids": ids, "labels": ids, **borders})
        return pieces

    def _take_fewer_rows(self) -> None:
        rows = self.micro_batch_size
        if rows == 1:
            raise RunStopped("out of memory with one row in a pass; say --gradient_checkpointing true")
        if self.args.world_size > 1:  # the other ranks are in the middle of a pass and will not begin it again
            passes = f" --gradient_accumulation_steps {2 * self.args.gradient_accumulation_steps}"
            raise RunStopped(
                f"out of memory with {rows} rows in a pass; say --per_device_train_batch_size {rows // 2}"
                + ("" if self.args.tokens_per_step else passes)
            )
        self.micro_batch_size = rows // 2
        gc.collect()
        torch.cuda.empty_cache()
        print(
            f"out of memory at micro-batch {rows}: retrying with {self.micro_batch_size} and accumulating twice as "
            f"often; a step still has {self.tokens_per_step:,} tokens"
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss, with the model's outputs if asked for; where it is not finite, its gradient is not either."""
        loss, outputs = super().compute_loss(
            model, inputs | {"skip_logits": not return_outputs}, True, num_items_in_batch
        )
        loss = self.guard.poison(cast(torch.Tensor, loss))
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> torch.Tensor:
        norm = super()._get_grad_norm(model, grad_norm)
        return self.guard.check(norm, self.optimizer.optimizer, self.state.global_step + 1)

    # ---- log lines, validation and checkpoints --------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed, tokens and passes of each source, and what was wrong with the steps since the last line."""
        if "loss" in logs:
            step = self.state.global_step
            self._add_health(logs)
            logs |= self.throughput.measure(step, self.args.max_steps)
            logs["tokens"] = step * self.tokens_per_step
            states = gather_object(list(self.data_position.workers.values()))
            for name, done in self._data_progress(states).items():
                logs[f"tokens/{name}"] = done["sequences"] * self.train_dataset.sequence_length
                logs |= {f"{fact}/{name}": done[fact] for fact in ("epochs", "skipped") if fact in done}
        super().log(logs, start_time)

    def _data_progress(self, states: list[Any]) -> dict[str, Progress]:
        try:
            return self.train_dataset.progress(states)
        except RunStopped:  # too much of a source is lost, which every rank finds out at the same time
            self._save_checkpoint(self.model, trial=None)
            raise

    def _add_health(self, logs: dict[str, float]) -> None:
        step = self.state.global_step
        share, skipped, longest = self.guard.read(self.accelerator.reduce)
        if skipped:
            logs["loss"] = logs["loss"] / share if share else float("nan")
            logs["skipped_steps"] = skipped
            logger.warning(f"step {step}: skipped {skipped} of the last steps, whose loss or gradient was not finite")
        if len(longest) >= self.args.max_nonfinite_steps:
            self._stop_not_finite(longest)
        earlier = [line["loss"] for line in self.state.log_history if "loss" in line]
        if above := loss_spike(logs["loss"], earlier):
            logs["loss_spike"] = above
            logger.warning(f"step {step}: a loss of {logs['loss']:.4f} is {above:.4f} above the median of late")

    def _stop_not_finite(self, steps: range) -> None:
        run_folder = Path(self.args.output_dir)
        file = self.guard.write_batches(run_folder, self.args.process_index, steps, self.tokenizer)
        before = [folder for step, folder in checkpoint_folders(run_folder) if step < steps[0]]
        good = [folder for folder in before if checkpoint_step(folder) is not None]
        raise NotFinite(
            f"max_nonfinite_steps: loss or gradient was not finite in {len(steps)} steps in a row, the last "
            f"{steps[-1]}; their rows are in '{file}', the last good checkpoint is {good[-1] if good else 'none'}"
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, perplexity ratios and bits per byte of the held-out rows, and MedQA dev accuracy (`validation`)."""
        args = self.args
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(rows, list) or not rows:
            raise InputError(f"eval_dataset: expected rows of a mixture, in a list, found {type(rows).__name__}")
        size = args.per_device_eval_batch_size
        batches = [self.data_collator(rows[i : i + size]) for i in range(0, len(rows), size)]
        ranks = (args.process_index, args.world_size, self.accelerator.reduce)
        self.model.eval()
        with self.throughput.paused(), torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
            nats = sequence_nats(self.model, batches, self.token_bytes, *ranks)
            metrics = loss_metrics(rows, nats, self.train_dataset.names, self.token_bytes)
            if self.questions:
                metrics |= dev_metrics(self.model, self.tokenizer, self.questions, *ranks)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    def few_rows(self) -> list[TokenSequence[Any]]:
        """Two rows of each source."""
        names = [row["source"] for row in self.eval_dataset]
        return [row for number, row in enumerate(self.eval_dataset) if names[:number].count(row["source"]) < 2]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        data = self.data_position
        position: RankState[Any] = {"workers": data.workers, "last_worker": data.last_worker}
        data.ranks = gather_object([position])
        with self.throughput.paused():
            super()._save_checkpoint(model, trial)

    def _add_to_checkpoint(self, folder: Path) -> None:
        (folder / CHECKPOINT_RECIPE).write_text(json.dumps(self.recipe, indent=2) + "\n")
