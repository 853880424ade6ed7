"""A recipe on the shared tiny sources, and the context of the checks for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from modeling_pure.doctor.command import checks, read_context
from modeling_pure.doctor.context import Context, Finding
from tests.scripts.conftest import SHAPE


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, tokenizer_folder, sources) -> Path:
    """A run of 12 steps of 4 sequences of 64 tokens."""
    folder = tmp_path_factory.mktemp("doctor")
    facts = {
        "output_dir": str(folder / "runs" / "pretrain"),
        "preset": "tiny",
        "model_overrides": SHAPE,
        "tokenizer_name_or_path": str(tokenizer_folder),
        "sources": sources,
        "max_seq_length": 64,
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 1,
    }
    path = folder / "pretrain.yaml"
    path.write_text(yaml.safe_dump(facts, sort_keys=False))
    return path


@pytest.fixture
def context(recipe) -> Callable[..., Context]:
    """The recipe with options of the command line."""
    return lambda *options: read_context(["--config", str(recipe), *map(str, options)])


def find(name: str, context: Context) -> Finding:
    """The finding of the check `name`."""
    (check,) = [check for check in checks(context) if check.name == name]
    return check.run(context)
