"""What has to be on the disk before a checkpoint has its name: a machine may lose its power at any time."""

import os
from pathlib import Path

from modeling_pure.training.checkpoint import FILE_LIST, checkpoint_fault


def test_every_file_and_the_list_of_them_are_on_the_disk_before_a_checkpoint_has_its_name(make_trainer, monkeypatch):
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
        assert str(Path(trainer.args.output_dir)) in flushed  # the folder, and with it the name
        assert checkpoint_fault(Path(trainer.args.output_dir, name)) is None
