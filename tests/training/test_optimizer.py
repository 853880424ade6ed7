"""Muon with AdamW equals each of the two on its own weights; schedule, saving and loading see one optimizer."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from modeling_pure.training.optimizer import MuonWithAdamW, muon_with_adamw
from tests.training.conftest import losses

SETTINGS = {"lr": 0.01, "weight_decay": 0.1}


def make_weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(8, 6), (6, 8), (20, 6)]]


def both(weights) -> MuonWithAdamW:
    return MuonWithAdamW(weights[:2], weights[2:], betas=(0.9, 0.95), eps=1e-8, **SETTINGS)


def set_gradients(weights, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def test_it_is_muon_on_the_hidden_weights_and_adamw_on_the_rest():
    ours, theirs = make_weights(), make_weights()
    optimizer = both(ours)
    muon = torch.optim.Muon(theirs[:2], adjust_lr_fn="match_rms_adamw", **SETTINGS)
    adamw = torch.optim.AdamW(theirs[2:], betas=(0.9, 0.95), fused=True, **SETTINGS)
    schedules = [LambdaLR(each, lambda step: 1 / (1 + step)) for each in (optimizer, muon, adamw)]
    for step in range(4):
        set_gradients(ours, step), set_gradients(theirs, step)
        for each in (optimizer, muon, adamw, *schedules):
            each.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert {group["lr"] for group in optimizer.param_groups} == {0.01 / 5}


def test_it_resumes_from_its_saved_state(tmp_path):
    straight, resumed = make_weights(), make_weights()
    optimizer = both(straight)
    for step in range(3):
        set_gradients(straight, step)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with torch.no_grad():
        for new, old in zip(resumed, straight, strict=True):
            new.copy_(old)
    other = both(resumed)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for step in range(3, 6):
        for weights, each in ((straight, optimizer), (resumed, other)):
            set_gradients(weights, step)
            each.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_muon_gets_the_matrices_of_the_layers(make_trainer):
    trainer = make_trainer(optimizer="muon")
    optimizer = muon_with_adamw(trainer.model, trainer.args)
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    hidden, others = [{names[id(weight)] for weight in group["params"]} for group in optimizer.param_groups]
    assert others == {"model.embed_tokens.weight", "lm_head.weight"}
    assert hidden == set(names.values()) - others
    assert all("layers" in name for name in hidden)


def test_a_run_with_muon_learns(make_trainer):
    trainer = make_trainer(optimizer="muon", max_steps=12)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.3
    assert len({line["learning_rate"] for line in trainer.state.log_history if "loss" in line}) > 5


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_resumes_bit_for_bit(make_trainer, optimizer):
    settings = {"optimizer": optimizer, "save_strategy": "steps", "save_steps": 3, "warmup_steps": 4}
    straight = make_trainer(**settings)
    straight.train()
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=f"{straight.args.output_dir}/checkpoint-3")
    assert losses(resumed) == losses(straight)
    assert len(losses(straight)) == 6
    for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
