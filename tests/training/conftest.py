"""A trainer small enough to be built in each test, by the script's own function."""

from collections.abc import Callable

import pytest

from modeling_pure.data.arguments import DataArguments
from modeling_pure.training.arguments import ModelArguments, PureTrainingArguments
from modeling_pure.training.trainer import PureTrainer
from tests.scripts.conftest import SHAPE
from train_pretrain import build_trainer

# At the default scales, all logits of so small a model are near zero and every comparison holds.
MODEL = {**SHAPE, "initializer_range": 0.1, "head_initializer_range": 0.1}
DATA_FIELDS = set(DataArguments.__dataclass_fields__)


@pytest.fixture
def make_trainer(tmp_path, tokenizer_folder, sources) -> Callable[..., PureTrainer]:
    """Builds a trainer on the tiny mixture; keywords are options of a recipe."""

    def make(**given) -> PureTrainer:
        data = {"sources": sources, "tokenizer_name_or_path": str(tokenizer_folder), "max_seq_length": 64}
        data |= {"validation_sequences": 10, **{name: given.pop(name) for name in list(given) if name in DATA_FIELDS}}
        training = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "warmup_steps": 1,
            "learning_rate": 0.003,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "dataloader_num_workers": 0,
            "disable_tqdm": True,
        }
        args = PureTrainingArguments(**{**training, **given})
        return build_trainer(ModelArguments("tiny", MODEL), DataArguments(**data), args, None)

    return make


def losses(trainer: PureTrainer) -> list[float]:
    """The logged losses of a run."""
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]
