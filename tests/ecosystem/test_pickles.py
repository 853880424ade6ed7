"""Files that run code when they are unpickled: nothing of ours opens one so, neither on loading nor on resuming."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modeling_pure import export
from modeling_pure.errors import InputError
from modeling_pure.loading import check_model, load_model
from modeling_pure.training.checkpoint import FILE_LIST, checkpoint_fault, write_file_list
from tests.training.conftest import make_trainer  # noqa: F401  a fixture


class Poison:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def poison(tmp_path):
    """Writes such a file, by torch.save; whoever unpickles it leaves a marker."""
    marker = tmp_path / "executed"

    def write(file: Path) -> None:
        torch.save(Poison(marker), file)
        torch.load(file, weights_only=False)
        assert marker.exists()  # it is poison
        marker.unlink()

    yield write
    assert not marker.exists()


@pytest.fixture
def checkpoint(make_trainer, tmp_path) -> Path:  # noqa: F811
    """Of step 2 of a run of 4."""
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    return tmp_path / "run" / "checkpoint-2"


def refresh_file_list(checkpoint: Path) -> None:
    """Whoever can write a file there can write down its size too."""
    (checkpoint / FILE_LIST).unlink()
    write_file_list(checkpoint)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_resuming_refuses_a_poisoned_state(make_trainer, checkpoint, poison, name):  # noqa: F811
    assert (checkpoint / name).is_file()
    poison(checkpoint / name)
    refresh_file_list(checkpoint)
    assert checkpoint_fault(checkpoint) is None
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=str(checkpoint))


def test_resuming_reads_neither_pickled_arguments_nor_pickled_weights(make_trainer, checkpoint, poison):  # noqa: F811
    for name in ("training_args.bin", "pytorch_model.bin", "adapter_model.bin"):
        poison(checkpoint / name)
    refresh_file_list(checkpoint)
    trainer = make_trainer(max_steps=4)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 4


def test_weights_are_read_from_safetensors_or_not_at_all(checkpoint, poison):
    poison(checkpoint / "pytorch_model.bin")
    named = ("model_name_or_path", str(checkpoint), False)
    weights = load_file(checkpoint / "model.safetensors")
    loaded = load_model(*named).state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"^model_name_or_path: .*\*\.safetensors"):  # before every script
        check_model("model_name_or_path", str(checkpoint))
    with pytest.raises(InputError, match=f"^model_name_or_path: .*'{checkpoint}': "):
        load_model(*named)
    with pytest.raises(InputError, match=f"^CHECKPOINT: .*'{checkpoint}': "):
        export.load(checkpoint, "pure", torch.float32)
    with pytest.raises(pickle.UnpicklingError):  # transformers alone
        AutoModelForCausalLM.from_pretrained(checkpoint)
