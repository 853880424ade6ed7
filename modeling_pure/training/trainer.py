"""`transformers.Trainer` on a mixture: it tracks the position in the data and resumes at the next sequence."""

import gc
import logging
from collections.abc import Callable, Iterator
from functools import partial, reduce
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data.mixture import collate_sequences, document_boundaries
from ..data.states import RankState, TokenSequence, TrainingData
from ..errors import InputError, RunStopped
from ..medqa.questions import Question
from ..modeling_pure import PureForCausalLM
from .arguments import PureTrainingArguments
from .checkpoint import callback_attributes, checkpoint_fault, checkpoint_folders
from .health import NonFiniteGuard, loss_spike
from .kernels import choose_attention_kernel, compile_layers, separate_documents_by_lengths
from .optimizer import muon_with_adamw
from .saving import DurableTrainer
from .signals import ignore_signals_to_group
from .throughput import Throughput, device_peak, model_flops
from .validation import dev_metrics, loss_metrics, sequence_nats, token_bytes

logger = logging.getLogger(__name__)


class DataPosition(TrainerCallback, ExportableState):
    """Every rank's position in the data, a stateful callback so that Trainer saves it in trainer_state.json."""

    def __init__(self) -> None:
        self.workers: dict[str, Any] = {}  # of this rank: each data-loader worker's state after its last batch
        self.last_worker = 0
        self.ranks: list[RankState[Any]] = []

    def state(self) -> dict[str, Any]:
        """The positions of all ranks, for the checkpoint."""
        return {"args": {}, "attributes": {"ranks": self.ranks}}


def check_given(
    args: Any, train_dataset: Any, eval_dataset: Any, **others: Any
) -> tuple[PureTrainingArguments, TrainingData[Any]]:
    """The arguments and training data; raises `InputError` for what Trainer accepts but `PureTrainer` does not."""
    wanted = {"args": PureTrainingArguments, "train_dataset": TrainingData, "eval_dataset": list}
    for (name, kind), given in zip(wanted.items(), (args, train_dataset, eval_dataset or []), strict=True):
        if not isinstance(given, kind):
            cure = "; for other data use transformers.Trainer, which can train this model"
            raise InputError(f"{name}: expected a {kind.__name__}, found a {type(given).__name__}{cure}")
    for name in ("data_collator", "compute_metrics", "preprocess_logits_for_metrics"):
        if others.get(name) is not None:
            raise InputError(f"{name}: batches and metrics are built in; leave it out")
    return args, train_dataset


class PureTrainer(DurableTrainer):
    """A Trainer for `TrainingData`. Every rank builds its own batches; no step waits for rank 0 or for its host.

    Takes Trainer's arguments, in the same order.

    Args:
        eval_dataset: validation sequences, each with the name of its `source`, inside the mixture or outside it.
        document_mask: whether to restrict attention to within documents.
        questions: MedQA dev questions to answer at each validation.

    Raises:
        InputError: an unusable argument, or questions or Muon under FSDP.
    """

    model: PureForCausalLM
    args: PureTrainingArguments
    train_dataset: TrainingData[Any]
    eval_dataset: list[TokenSequence[Any]]
    data_collator: Callable[[list[TokenSequence[Any]]], dict[str, Any]]
    optimizer: Any  # accelerate's wrapper is untyped

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
        **kwargs: Any,
    ) -> None:
        args, train_dataset = check_given(args, train_dataset, eval_dataset, data_collator=data_collator, **kwargs)
        self.plan = args.batch_plan(train_dataset.sequence_length)
        args.per_device_train_batch_size = self.plan.micro_batch_size  # which Trainer reads
        args.gradient_accumulation_steps = self.plan.accumulation
        self.data_position, self.tokenizer = DataPosition(), train_dataset.tokenizer
        self.document_end = self.tokenizer.eos_token_id if document_mask else None
        collator = partial(collate_sequences, document_end=self.document_end)
        super().__init__(model, args, collator, train_dataset, eval_dataset, *more, **kwargs)
        self.add_callback(self.data_position)
        if self.args.optimizer == "muon" and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise InputError("optimizer: muon needs unsharded matrices; use adamw, or DDP")
        if self.is_deepspeed_enabled:
            logger.warning("DeepSpeed controls the optimizer step: non-finite steps are counted but not skipped")
        if self.is_fsdp_enabled and questions:
            raise InputError("medqa_dev_questions: unsupported under FSDP, since ranks answer different ones; use DDP")
        self.questions = questions or []
        self.token_bytes = token_bytes(self.tokenizer, self.model.config.vocab_size)
        self.micro_batch_size = self.plan.micro_batch_size  # halved when memory runs out
        steps = self.args.logging_steps  # below 1, a fraction of the run
        kept = ceil(steps if steps >= 1 else steps * self.args.max_steps) + self.args.max_nonfinite_steps
        self.guard = NonFiniteGuard(kept, self.args.device)
        peak = device_peak(self.args.device)
        self.throughput = Throughput(
            self.tokens_per_step,
            model_flops(self.model, train_dataset.sequence_length),
            peak and peak * self.args.world_size,
            self.args.device,
        )
        self.add_callback(self.throughput)
        choose_attention_kernel(self.args.attention_kernel)
        if document_mask and self.args.bf16 and self.args.device.type == "cuda":
            separate_documents_by_lengths(self.model)
        if self.args.compile_layers:
            compile_layers(self.model)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all devices."""
        return self.plan.sequences_per_step * self.train_dataset.sequence_length

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create Trainer's AdamW, or Muon with AdamW."""
        if self.optimizer is None and self.args.optimizer == "muon":
            self.optimizer = muon_with_adamw(self.model, self.args)
        return super().create_optimizer(model)

    def get_train_dataloader(self) -> DataLoader[TokenSequence[Any]]:
        """A loader that accelerate does not prepare: the data already give each rank its own batches."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_size=self.plan.micro_batch_size,
            collate_fn=self.data_collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=ignore_signals_to_group,
            generator=torch.Generator(),  # leaves torch's own, which a checkpoint restores, untouched
        )

    def restore(self, checkpoint: Path) -> None:
        """Restore the position in the data; raises `InputError` if the data changed, unless that is allowed."""
        super().restore(checkpoint)
        ranks: list[RankState[Any]] = callback_attributes(checkpoint, DataPosition.__name__)["ranks"]
        data = self.train_dataset
        try:
            change = data.resume(ranks, max(1, self.args.dataloader_num_workers))
        except InputError as error:
            if not self.args.allow_recipe_change:
                raise
            change = f"the data restart: {error}"
        if change and self.is_world_process_zero():
            print(change)
        if data.position:
            self.data_position.workers = dict(data.position)
            self.data_position.last_worker = (data.first_worker - 1) % len(data.position)

    # ---- one step -------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """The micro-batches of a step, kept in case they must be rerun or reported."""
        try:
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        except RunStopped:
            # The data ran out between two steps. Other ranks already wait in the next step, so that only a
            # single-process run can still save.
            if self.args.world_size == 1 and self.state.global_step:
                self._save_checkpoint(self.model, trial=None)
            raise
        self.guard.batches.append((self.state.global_step + 1, batches))
        return batches, num_items

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        # Sequences have no padding, so the count is known; Trainer's would wait for the device.
        tokens = sum(batch["labels"].numel() - len(batch["labels"]) for batch in batch_samples)
        return torch.full((), tokens * self.args.world_size, device=device)

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward pass of a micro-batch, split once memory has run out."""
        _, batches = self.guard.batches[-1]
        state = inputs["data_state"]
        self.data_position.last_worker = state["worker"]
        self.data_position.workers[str(state["worker"])] = state
        loss = self._accumulate(model, inputs, num_items_in_batch)
        while loss is None:
            self._halve_micro_batch()
            model.zero_grad()  # partial gradients are invalid: rerun this step's micro-batches
            before = batches[: next(i for i, batch in enumerate(batches) if batch is inputs)]
            losses = [self._accumulate(model, batch, num_items_in_batch) for batch in (*before, inputs)]
            loss = None if None in losses else losses[-1]
        return self.guard.count_loss(loss)

    def _accumulate(
        self, model: nn.Module, batch: dict[str, Any], num_items: torch.Tensor | int | None
    ) -> torch.Tensor | None:
        """The loss of a micro-batch, its gradients accumulated; None if memory ran out."""
        parts = [{name: value for name, value in batch.items() if name not in ("source", "data_state")}]
        if self.micro_batch_size < len(batch["input_ids"]):
            parts = []
            for ids in batch["input_ids"].split(self.micro_batch_size):
                borders = {} if self.document_end is None else document_boundaries(ids, self.document_end)
                parts.append({"input_ids": ids, "labels": ids, **borders})
        try:
            return reduce(torch.add, (Trainer.training_step(self, model, part, num_items) for part in parts))
        except torch.OutOfMemoryError:
            return None

    def _halve_micro_batch(self) -> None:
        size = self.micro_batch_size
        if size == 1:
            raise RunStopped("out of memory at micro-batch 1; set --gradient_checkpointing true")
        if self.args.world_size > 1:  # other ranks cannot rerun this micro-batch
            more = "" if self.args.tokens_per_step else f" --gradient_accumulation_steps {2 * self.plan.accumulation}"
            raise RunStopped(
                f"out of memory at micro-batch {size}; set --per_device_train_batch_size {size // 2}{more}"
            )
        self.micro_batch_size = size // 2
        gc.collect()
        torch.cuda.empty_cache()
        print(
            f"out of memory at micro-batch {size}; retrying with {self.micro_batch_size} and twice the accumulation "
            f"({self.tokens_per_step:,} tokens per step as before)"
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss, optionally with the model's outputs; a non-finite loss gets a non-finite gradient."""
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
        """Add speed, each source's tokens and epochs, and skipped steps and spikes since the last line."""
        if "loss" in logs:
            step = self.state.global_step
            self._add_health(logs)
            logs |= self.throughput.measure(step, self.args.max_steps)
            logs["tokens"] = step * self.tokens_per_step
            states = gather_object(list(self.data_position.workers.values()))
            try:
                progress = self.train_dataset.progress(states)
            except RunStopped:  # too much of a source is lost; every rank finds out at the same time
                self._save_checkpoint(self.model, trial=None)
                raise
            for name, done in progress.items():
                logs[f"tokens/{name}"] = done["sequences"] * self.train_dataset.sequence_length
                logs |= {f"{fact}/{name}": done[fact] for fact in ("epochs", "skipped") if fact in done}
        super().log(logs, start_time)

    def _add_health(self, logs: dict[str, float]) -> None:
        step = self.state.global_step
        share, skipped, longest = self.guard.read(self.accelerator.reduce)
        if skipped:
            logs["loss"] = logs["loss"] / share if share else float("nan")
            logs["skipped_steps"] = skipped
            logger.warning(f"step {step}: skipped {skipped} steps since the last line: loss or gradient is not finite")
        if len(longest) >= self.args.max_nonfinite_steps:
            self._stop_not_finite(longest)
        earlier = [line["loss"] for line in self.state.log_history if "loss" in line]
        if above := loss_spike(logs["loss"], earlier):
            logs["loss_spike"] = above
            logger.warning(f"step {step}: a loss of {logs['loss']:.4f} is {above:.4f} above the recent median")

    def _stop_not_finite(self, steps: range) -> None:
        run_folder = Path(self.args.output_dir)
        file = self.guard.write_batches(run_folder, self.args.process_index, steps, self.tokenizer)
        before = [folder for step, folder in checkpoint_folders(run_folder) if step < steps[0]]
        good = [folder for folder in before if not checkpoint_fault(folder)]
        raise RunStopped(
            f"max_nonfinite_steps: loss or gradient was not finite in {len(steps)} consecutive steps up to "
            f"{steps[-1]}; their sequences are in '{file}', the last good checkpoint is {good[-1] if good else 'none'}"
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, perplexity ratio and bits per byte on the validation sequences, and MedQA dev accuracy."""
        args = self.args
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(rows, list) or not rows:
            raise InputError(f"eval_dataset: expected a list of sequences, found {type(rows).__name__}")
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
        """Two sequences of each source."""
        names = [row["source"] for row in self.eval_dataset]
        return [row for number, row in enumerate(self.eval_dataset) if names[:number].count(row["source"]) < 2]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        data = self.data_position
        position: RankState[Any] = {"workers": data.workers, "last_worker": data.last_worker}
        data.ranks = gather_object([position])
        with self.throughput.paused():
            super()._save_checkpoint(model, trial)
