"""`transformers.Trainer` on the mixture: it always knows which rows it has trained on, and resumes after them."""

import time
from functools import partial
from pathlib import Path

from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..data.mixture import Mixture, collate_rows
from ..data.packed import PackedMixture
from ..errors import RunStopped
from .checkpoint import callback_attributes, checkpoint_step, restore_finished


class DataPosition(TrainerCallback, ExportableState):
    """Where every rank is in its data. As a stateful callback it is saved in trainer_state.json, written last."""

    def __init__(self):
        self.workers: dict[str, dict] = {}  # this rank's data-loader workers: the state after their last batch
        self.last_worker = 0
        self.ranks: list[dict] = []

    def advance(self, data_state: dict) -> None:
        """Note the state of a batch that is being trained on."""
        self.last_worker = data_state["worker"]
        self.workers[str(self.last_worker)] = data_state

    def state(self) -> dict:
        """What goes into the checkpoint: the positions of all ranks."""
        return {"args": {}, "attributes": {"ranks": self.ranks}}


def resume_data(checkpoint: str | Path, dataset: Mixture | PackedMixture, args: TrainingArguments) -> str | None:
    """Put the data where it was when a checkpoint was written; returns what changes for the user, if anything does.

    Raises:
        InputError: another kind of run wrote the checkpoint, or one with other sources.
    """
    ranks = callback_attributes(checkpoint, DataPosition.__name__)["ranks"]
    return dataset.resume(ranks, max(1, args.dataloader_num_workers))


class PureTrainer(Trainer):
    """A Trainer for `Mixture`. Every rank builds its own batches; none waits for rank 0.

    Args:
        document_mask: whether the documents of a row are kept from attending to each other.
    """

    def __init__(self, *args, train_dataset: Mixture | PackedMixture, document_mask: bool = False, **kwargs):
        self.data_position = DataPosition()
        document_end = train_dataset.tokenizer.eos_token_id if document_mask else None
        collator = partial(collate_rows, document_end=document_end)
        super().__init__(*args, train_dataset=train_dataset, data_collator=collator, **kwargs)
        self.add_callback(self.data_position)
        self._last_log = (time.perf_counter(), 0)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all devices."""
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return rows * self.train_dataset.row_length

    def get_train_dataloader(self) -> DataLoader:
        """A plain loader: the mixture already gives each rank its own rows, so accelerate must not share them out."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """Train; with a checkpoint, first put the data where that checkpoint left it."""
        if resume_from_checkpoint:
            resume_data(resume_from_checkpoint, self.train_dataset, self.args)
            self.data_position.workers = dict(self.train_dataset.position)
            self.data_position.last_worker = (self.train_dataset.first_worker - 1) % len(self.data_position.workers)
            if checkpoint_step(Path(resume_from_checkpoint)) >= self.args.max_steps:
                return restore_finished(self, resume_from_checkpoint)
        self._last_log = (time.perf_counter(), None)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except RunStopped:
            # The data have ended between two steps. Other ranks wait in the next step, not here, so that only a run
            # of one process can still save.
            if self.args.world_size == 1 and self.state.global_step:
                self._save_checkpoint(self.model, trial=None)
            raise

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One forward and backward pass; notes the batch's place in the data."""
        self.data_position.advance(inputs.pop("data_state"))
        return super().training_step(model, inputs, num_items_in_batch)

    def create_model_card(self, *args, **kwargs) -> None:
        """Leave the card to the script: Trainer's would replace ours, which says what the model is not for."""

    def _save_checkpoint(self, model, trial):
        position = {"workers": self.data_position.workers, "last_worker": self.data_position.last_worker}
        self.data_position.ranks = gather_object([position])
        super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens, tokens per second since the last line, and passes over each source."""
        if "loss" in logs:
            now, step = time.perf_counter(), self.state.global_step
            then, last_step = self._last_log
            if last_step is not None:
                logs["tokens_per_second"] = round((step - last_step) * self.tokens_per_step / (now - then), 1)
            self._last_log = (now, step)
            logs["tokens"] = step * self.tokens_per_step
            states = gather_object(list(self.data_position.workers.values()))
            for name, done in self.train_dataset.progress(states).items():
                logs[f"tokens/{name}"] = done["rows"] * self.train_dataset.row_length
                logs |= {f"{fact}/{name}": done[fact] for fact in ("passes", "skipped") if fact in done}
        super().log(logs, start_time)
