"""Trackers: TensorBoard, W&B and trackio get what metrics.jsonl gets, and nothing is written outside the run."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations.integration_utils import rewrite_logs
from trl.extras import profiling
from trl.trainer import grpo_trainer

import train_grpo
import train_pretrain
from modeling_pure.training.run_folder import read_metrics
from tests.scripts.conftest import grpo_recipe, pretrain_recipe, pretrained, train_here  # noqa: F401  fixtures

# W&B and trackio have these in a run's summary, or drop them.
OF_THE_RUN = {f"train_{name}" for name in ("runtime", "samples_per_second", "steps_per_second", "loss")}
OF_THE_RUN |= {"total_flos"}


class StandIn(MagicMock):
    """A tracker's module: what was logged, and an error for a log line before the run was opened, as trackio has."""

    def init(self, **settings: object) -> None:
        self.run = MagicMock()

    def log(self, metrics: dict, step: int | None = None) -> None:
        assert self.run
        self.logged.append(metrics)


@pytest.fixture
def trackers(monkeypatch) -> list[StandIn]:
    """Stand-in modules for W&B and trackio, which are not installed."""
    stand_ins = []
    for name in ("wandb", "trackio"):
        module = StandIn(__version__="1.0", __spec__=ModuleSpec(name, None), logged=[], run=None)
        monkeypatch.setitem(sys.modules, name, module)
        for user in (profiling, grpo_trainer):  # TRL imports what is installed
            monkeypatch.setattr(user, name, module, raising=False)
        stand_ins.append(module)
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.config_util", SimpleNamespace(ConfigError=ValueError))
    return stand_ins


def tensorboard_scalars(folder: Path) -> set[str]:
    """The names of all scalars in TensorBoard's files below a folder."""
    names = set()
    for file in folder.rglob("events.out.tfevents*"):
        events = EventAccumulator(str(file)).Reload()
        names |= {*events.Tags()["scalars"]}
    return names


@pytest.mark.parametrize(
    ("script", "recipe"), [(train_pretrain, "pretrain_recipe"), (train_grpo, "grpo_recipe")], ids=["pretrain", "grpo"]
)
def test_all_trackers_get_the_same_names(train_here, trackers, script, recipe, request, tmp_path, monkeypatch):  # noqa: F811
    recipe, run = request.getfixturevalue(recipe), tmp_path / "run"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    options = ["--report_to", "tensorboard", "wandb", "trackio", "--trackio_static_space_id", "false"]
    train_here("--config", recipe, "--output_dir", run, *options, script=script)
    lines = [
        {name: value for name, value in line.items() if name != "step"} for line in read_metrics(run / "metrics.jsonl")
    ]
    logged = {name for line in lines for name, value in line.items() if value is not None}
    assert {"loss", "eval_loss", "learning_rate"} <= logged
    assert tensorboard_scalars(run) == {*rewrite_logs(dict.fromkeys(logged))}
    of_steps = {*rewrite_logs(dict.fromkeys(logged - OF_THE_RUN)), "train/global_step"}
    for tracker in trackers:
        names = {name for metrics in tracker.logged for name in metrics}
        of_trl = {name for name in names if name == "completions" or name.startswith("profiling/")}
        assert names - of_trl == of_steps
    assert [*(tmp_path / "elsewhere").iterdir()] == []


def test_a_trainer_that_only_evaluates_writes_into_its_run(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_trainer(report_to="tensorboard").evaluate()
    assert tensorboard_scalars(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
