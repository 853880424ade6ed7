"""An incomplete checkpoint is never taken for a complete one."""

import json
import re
from pathlib import Path

import pytest

from modeling_pure.errors import InputError
from modeling_pure.training.checkpoint import (
    FILE_LIST,
    callback_attributes,
    checkpoint_fault,
    complete_step,
    last_complete_checkpoint,
    write_file_list,
)


def write_checkpoint(run, step, text=None):
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    state = {"global_step": step, "stateful_callbacks": {"Budget": {"attributes": {"tokens": step}}}}
    (folder / "trainer_state.json").write_text(json.dumps(state) if text is None else text)
    (folder / "model.safetensors").write_bytes(b"weights")
    write_file_list(folder)
    return folder


def test_the_newest_complete_checkpoint_is_found(tmp_path, capsys):
    write_checkpoint(tmp_path, 900)
    whole = write_checkpoint(tmp_path, 1000)
    (tmp_path / "checkpoint-1100").mkdir()
    write_checkpoint(tmp_path, 1200, text='{"global_step": 12')
    write_checkpoint(tmp_path, 1300, text='{"global_step": 1200}')
    (write_checkpoint(tmp_path, 1400) / "model.safetensors").write_bytes(b"weigh")
    (write_checkpoint(tmp_path, 1500) / "model.safetensors").unlink()
    assert last_complete_checkpoint(str(tmp_path)) == whole
    said = capsys.readouterr().out.splitlines()
    assert [int(line.split("checkpoint-")[1].split(":")[0]) for line in said] == [1500, 1400, 1300, 1200, 1100]
    assert "model.safetensors" in said[0]
    assert re.search(r"model\.safetensors .*\b5\b.*\b7\b", said[1])


def test_the_card_may_change_after_a_checkpoint_is_written(tmp_path):
    folder = write_checkpoint(tmp_path, 10)
    (folder / "README.md").write_text("ours")
    write_file_list(folder)
    (folder / "README.md").write_text("ours, with an accuracy")
    assert checkpoint_fault(folder) is None
    assert "README.md" not in json.loads((folder / FILE_LIST).read_text())


def test_a_new_run_has_no_checkpoint(tmp_path):
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_a_requested_checkpoint_must_be_complete(tmp_path):
    whole = write_checkpoint(tmp_path, 10)
    assert complete_step(whole) == 10
    with pytest.raises(InputError, match=f"^resume_from_checkpoint: '{tmp_path}' "):
        complete_step(tmp_path)


def test_the_error_for_a_run_folder_names_its_newest_checkpoint(tmp_path):
    write_checkpoint(tmp_path, 10)
    newest = write_checkpoint(tmp_path, 20)
    with pytest.raises(InputError, match=rf"^resume_from_checkpoint: '{tmp_path}' .* {newest}\b"):
        complete_step(tmp_path)
    with pytest.raises(InputError, match=r"^resume_from_checkpoint: 'true' .*checkpoint-N"):  # as Trainer accepts it
        complete_step(Path("true"))


def test_callback_attributes_are_read_by_name(tmp_path):
    folder = write_checkpoint(tmp_path, 10)
    assert callback_attributes(folder, "Budget") == {"tokens": 10}
    with pytest.raises(InputError, match=rf"^{folder}: .*\bDataPosition\b"):
        callback_attributes(folder, "DataPosition")
