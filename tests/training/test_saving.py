"""Checkpoints are complete on disk before they get their name, since power may fail at any time."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_pure.errors import RunStopped
from modeling_pure.training.checkpoint import FILE_LIST, checkpoint_fault, checkpoint_folders
from modeling_pure.training.trainer import PureTrainer


def test_all_files_are_flushed_before_a_checkpoint_is_renamed(make_trainer, monkeypatch):
    flushed, named = set(), []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        flushed.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def note_rename(old: str | Path, new: str | Path) -> None:
        files = {path.name: str(path) in flushed for path in Path(old).rglob("*") if path.is_file()}
        named.append((Path(new).name, files))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    trainer = make_trainer(save_strategy="steps", save_steps=2, max_steps=4)
    trainer.train()
    checkpoints = [(name, files) for name, files in named if name.startswith("checkpoint-")]
    assert [name for name, _ in checkpoints] == ["checkpoint-2", "checkpoint-4"]
    for name, files in checkpoints:
        assert all(files.values()), files
        assert {FILE_LIST, "model.safetensors", "optimizer.pt"} <= files.keys()
        assert str(Path(trainer.args.output_dir)) in flushed  # the run folder, which holds the name
        assert checkpoint_fault(Path(trainer.args.output_dir, name)) is None


def test_an_unusable_checkpoint_is_an_error_when_it_is_written(make_trainer, monkeypatch):
    trainer = make_trainer(save_strategy="steps", save_steps=2)
    monkeypatch.setattr("transformers.TrainerState.save_to_json", lambda state, path: Path(path).write_text("{}"))
    with pytest.raises(RunStopped, match=r"^output_dir: checkpoint-2\b"):
        trainer.train()
    assert checkpoint_folders(trainer.args.output_dir) == []


def test_saved_files_follow_the_umask_and_include_no_pickled_arguments(make_trainer):
    trainer = make_trainer(save_strategy="steps", save_steps=2, max_steps=2)
    run = Path(trainer.args.output_dir)
    before = os.umask(0o027)
    try:
        trainer.train()
        trainer.save_model()
    finally:
        os.umask(before)
    files = [file for file in run.rglob("*") if file.is_file()]
    assert [run / "model.safetensors", run / "checkpoint-2/model.safetensors"] == sorted(run.rglob("*.safetensors"))[
        ::-1
    ]
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o640"}
    assert not list(run.rglob("training_args.bin"))


class Rates(TrainerCallback):
    """Records the learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def test_an_extended_run_follows_the_longer_schedule_at_once(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=2, max_steps=2).train()
    straight, longer = Rates(), Rates()
    for callback, folder, checkpoint in ((straight, "straight", None), (longer, "run", tmp_path / "run/checkpoint-2")):
        trainer = make_trainer(max_steps=6, output_dir=str(tmp_path / folder))
        trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    assert len(straight.rates) == 6
    assert longer.rates == straight.rates[2:]


@pytest.mark.parametrize("greater", [False, True])
def test_the_best_saved_checkpoint_is_kept_and_loaded_at_the_end(make_trainer, monkeypatch, greater):
    losses = {1: 0.1, 2: 0.5, 3: 0.05, 4: 0.3, 5: 0.2, 6: 0.4}  # the best ones are never saved

    def evaluate(self, *args, **kwargs):
        metrics = {"eval_loss": losses[self.state.global_step] * (-1 if greater else 1)}
        self.log(metrics)
        return metrics

    monkeypatch.setattr(PureTrainer, "evaluate", evaluate)
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"save_total_limit": 1, "load_best_model_at_end": True, "greater_is_better": greater}
    trainer = make_trainer(**settings)
    trainer.train()
    run = Path(trainer.args.output_dir)
    again = make_trainer(**settings)
    again.train(resume_from_checkpoint=True)
    assert [step for step, _ in checkpoint_folders(run)] == [4, 6]
    assert trainer.state.best_model_checkpoint == str(run / "checkpoint-4")
    for one in (trainer, again):
        assert one.best_saved() == (run / "checkpoint-4", 4, -0.3 if greater else 0.3)
        saved = load_file(run / "checkpoint-4/model.safetensors")
        assert all(torch.equal(value, saved[name]) for name, value in one.model.state_dict().items())
