"""An evaluation is rehearsed before a run starts, and leaves the run unchanged."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from modeling_pure.errors import InputError
from modeling_pure.training.run import refusals_as_input_errors, rehearse
from modeling_pure.training.saving import DurableTrainer
from tests.training.conftest import losses


def test_a_rehearsal_changes_nothing(make_trainer, tmp_path):
    runs = []
    for number, rehearsed in enumerate((True, False)):
        trainer = make_trainer(
            output_dir=str(tmp_path / str(number)), medqa_dev_questions=9, eval_strategy="steps", eval_steps=3
        )
        if rehearsed:
            generator = torch.random.get_rng_state()
            rehearse(trainer)
            assert torch.equal(torch.random.get_rng_state(), generator)
            few, rows = (Counter(row["source"] for row in some) for some in (trainer.few_rows(), trainer.eval_dataset))
            assert few == {name: min(2, number) for name, number in rows.items()}
            assert trainer.state.log_history == []
            assert len(trainer.questions) == 9
            assert trainer.model.training
        trainer.train()
        evaluations = [line["eval_medqa_nll"] for line in trainer.state.log_history if "eval_loss" in line]
        runs.append((losses(trainer), evaluations, [*trainer.model.parameters()]))
    (first, nll, weights), (second, other_nll, other_weights) = runs
    assert first == second
    assert nll == other_nll
    assert len(nll) == 2
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))


def test_a_metric_is_only_required_if_the_run_evaluates(make_trainer):
    rehearse(make_trainer(metric_for_best_model="no such metric"))
    with pytest.raises(InputError, match="^metric_for_best_model: "):
        rehearse(make_trainer(metric_for_best_model="no such metric", eval_strategy="steps"))


@pytest.mark.parametrize("error", [ValueError("two\nlines"), ImportError("two"), InputError("two")])
def test_library_errors_become_one_line(error):
    with pytest.raises(InputError, match="^two$"), refusals_as_input_errors():
        raise error


def test_a_bug_keeps_its_traceback():
    with pytest.raises(InputError, match="'foo'"), refusals_as_input_errors():
        raise TypeError("__init__() got an unexpected keyword argument 'foo'")
    with pytest.raises(TypeError), refusals_as_input_errors():
        raise TypeError("'<' not supported between instances of 'int' and 'str'")


def test_every_answer_format_is_rehearsed():
    formats = ["text", "text", "text", "letter", "text", "reasoned"]
    args = SimpleNamespace(world_size=1)
    trainer = SimpleNamespace(eval_dataset=Dataset.from_dict({"answer_format": formats}), args=args)
    assert DurableTrainer.few_rows(trainer)["answer_format"][:] == ["text", "text", "letter", "reasoned"]
    trainer.eval_dataset = Dataset.from_dict({"prompt": formats})
    assert len(DurableTrainer.few_rows(trainer)) == 2


@pytest.mark.parametrize(("steps", "warnings"), [(6, 0), (7, 1)])
def test_a_warm_up_longer_than_the_run_is_reported(make_trainer, caplog, steps, warnings):
    make_trainer(max_steps=6, warmup_steps=steps)
    assert len([line for line in caplog.messages if line.startswith("warmup_steps: ")]) == warnings


def test_the_repository_is_created_when_training_starts(make_trainer, monkeypatch):
    made = []
    monkeypatch.setattr("modeling_pure.training.saving.create_repository", lambda args: made.append(1) or "user/pure")
    trainer = make_trainer(push_to_hub=True, hub_model_id="user/pure", hub_strategy="end", max_steps=1)
    rehearse(trainer)
    assert made == []
    trainer.train()
    assert made == [1]
