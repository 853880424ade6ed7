"""Non-finite steps change nothing; consecutive ones stop the run and their sequences are written; spikes are found."""

import json
import math
from pathlib import Path

import pytest
import torch

from modeling_pure.errors import RunStopped
from modeling_pure.training.arguments import OPTIMIZERS
from modeling_pure.training.health import loss_spike
from modeling_pure.training.trainer import PureTrainer
from tests.training.conftest import losses


def spoil(trainer: PureTrainer, steps: set[int], where: str) -> None:
    """Make the loss or one gradient of some steps non-finite."""
    forward = trainer.model.forward

    def spoiled(*args, **kwargs):
        out = forward(*args, **kwargs)
        if trainer.model.training and trainer.state.global_step + 1 in steps:
            if where == "loss":
                out.loss = out.loss * torch.inf
            else:
                out.loss.register_hook(lambda gradient: gradient * torch.nan)
        return out

    trainer.model.forward = spoiled


def state_of(trainer: PureTrainer) -> list[torch.Tensor]:
    """Copies of all weights and of the optimizer's state."""
    kept = [weight.detach().clone() for weight in trainer.model.parameters()]
    for state in trainer.optimizer.state.values():
        kept += [value.clone() for value in state.values() if torch.is_tensor(value)]
    return kept


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd", "adamw_torch", "adafactor"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("step", [1, 3])
def test_a_non_finite_step_changes_nothing(make_trainer, optimizer, where, step):
    named = {"optimizer": optimizer} if optimizer in OPTIMIZERS else {"optim": optimizer}
    trainer = make_trainer(**named, max_steps=5, warmup_steps=0)
    spoil(trainer, {step}, where)
    around = {}

    class Watch:
        def before(self, *args):
            around[trainer.state.global_step + 1] = [state_of(trainer)]

        def after(self, *args):
            around[trainer.state.global_step + 1].append(state_of(trainer))

    original = trainer.create_optimizer

    def create_optimizer(model=None):
        made = original(model)
        made.register_step_pre_hook(Watch().before)
        made.register_step_post_hook(Watch().after)
        return made

    trainer.create_optimizer = create_optimizer
    trainer.train()
    assert sorted(around) == [1, 2, 3, 4, 5]
    for number, (before, after) in around.items():
        if len(before) < len(after):  # the first step creates the optimizer's state, of zeros if it is skipped
            fresh = after[len(before) :]
            assert any(value.any() for value in fresh) == (number != step)
        same = [torch.equal(old, new) for old, new in zip(before, after, strict=False)]
        assert all(same) if number == step else not any(same[:3])
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


def test_the_log_counts_skipped_steps_and_averages_the_others(make_trainer):
    plain, spoiled = make_trainer(logging_steps=1, max_steps=4), make_trainer(logging_steps=4, max_steps=4)
    spoil(plain, {4}, "gradient")
    spoil(spoiled, {4}, "loss")
    plain.train(), spoiled.train()
    (line,) = [line for line in spoiled.state.log_history if "loss" in line]
    assert line["skipped_steps"] == 1
    assert line["loss"] == pytest.approx(sum(losses(plain)[:3]) / 3, rel=1e-6)
    assert [line.get("skipped_steps") for line in plain.state.log_history if "loss" in line] == [None, None, None, 1]


def test_a_log_line_of_only_bad_steps_has_a_nan_loss(make_trainer):
    trainer = make_trainer(max_steps=2)
    spoil(trainer, {2}, "loss")
    trainer.train()
    assert math.isfinite(losses(trainer)[0])
    assert math.isnan(losses(trainer)[1])


@pytest.mark.parametrize("logging_steps", [1, 3])
def test_consecutive_bad_steps_stop_the_run_and_their_sequences_are_written(make_trainer, logging_steps):
    trainer = make_trainer(
        max_steps=12, max_nonfinite_steps=3, logging_steps=logging_steps, gradient_accumulation_steps=2
    )
    spoil(trainer, {1, 4, 5, 6, 7, 8, 9, 10, 11, 12}, "loss")
    with pytest.raises(RunStopped, match=r"^max_nonfinite_steps: \D*\b3\b\D*\b6\b.*\bnone$"):  # no checkpoint
        trainer.train()
    file = Path(trainer.args.output_dir) / "not-finite-rank-0.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [4] * 8 + [5] * 8 + [6] * 8
    assert {line["source"] for line in lines} == {"finepdfs", "fineweb_edu", "c4", "usmle"}
    assert all(len(line["input_ids"]) == 64 and line["text"] for line in lines)


def test_later_good_steps_do_not_hide_bad_ones(make_trainer):
    trainer = make_trainer(max_steps=8, max_nonfinite_steps=3, logging_steps=8)
    spoil(trainer, {2, 3, 4, 6}, "gradient")
    with pytest.raises(RunStopped, match=r"^max_nonfinite_steps: \D*\b3\b\D*\b4\b"):
        trainer.train()
    file = Path(trainer.args.output_dir) / "not-finite-rank-0.jsonl"
    assert {json.loads(line)["step"] for line in file.read_text().splitlines()} == {2, 3, 4}


def test_fewer_consecutive_bad_steps_do_not_stop_the_run(make_trainer):
    trainer = make_trainer(max_steps=8, max_nonfinite_steps=3, logging_steps=4)
    spoil(trainer, {3, 4, 6, 7}, "gradient")
    trainer.train()
    assert [line["skipped_steps"] for line in trainer.state.log_history if "loss" in line] == [2, 2]


def test_consecutive_bad_steps_are_counted_across_log_lines(make_trainer):
    trainer = make_trainer(max_steps=8, max_nonfinite_steps=4, logging_steps=4)
    spoil(trainer, {3, 4, 5, 6}, "gradient")
    with pytest.raises(RunStopped, match=r"^max_nonfinite_steps: \D*\b4\b\D*\b6\b"):
        trainer.train()


def test_a_spike_exceeds_the_noise_and_a_falling_curve_has_none():
    falling = [8.0 - 0.1 * step for step in range(40)]
    assert all(loss_spike(falling[i], falling[:i]) is None for i in range(40))
    quiet = [3.0 + 0.02 * (-1) ** step for step in range(60)]
    assert loss_spike(3.1, quiet) is None
    assert loss_spike(3.5, quiet) == pytest.approx(0.5, abs=0.03)
    assert loss_spike(3.5, quiet[:9]) is None  # too few to compare with
    assert loss_spike(3.5, [*quiet, *[9.0] * 5]) == pytest.approx(0.5, abs=0.03)  # earlier spikes do not hide it
    assert loss_spike(float("nan"), quiet) is None
    assert loss_spike(3.5, [*quiet, *[float("nan")] * 5]) == pytest.approx(0.5, abs=0.03)
