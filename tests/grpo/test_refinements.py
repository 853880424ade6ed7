"""TRL's refinements, verified by enumerating a vocabulary and against the stock trainer."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.grpo.sampling import pack_bits
from tests.grpo.conftest import UNEVEN, make_batch

VOCAB, PROMPT = 48, torch.tensor([[3, 9, 27, 4]])


@pytest.fixture
def folder(tmp_path):
    """A model whose vocabulary is small enough to enumerate."""
    config = PureConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.2,
        head_initializer_range=0.5,
        num_real_tokens=VOCAB,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    PureForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def moved(folder, seed: int) -> PureForCausalLM:
    """A folder's model after some noise, as after some updates."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.15 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def next_log_probs(model, kept: torch.Tensor | None) -> torch.Tensor:
    """Log-probabilities (vocab,) of the token after the prompt, over the kept set."""
    logits = model(PROMPT).logits[0, -1]
    return (logits if kept is None else logits.masked_fill(~kept, -torch.inf)).log_softmax(-1)


def flat(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def expected_gradient(trainer, old: torch.Tensor, ref: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """The gradient of TRL's loss without advantages, averaged over all tokens as sampled by the old policy."""
    trainer.current_gradient_accumulation_steps = 1
    total = 0
    for token in old.exp().nonzero()[:, 0]:
        inputs = {
            "prompt_ids": PROMPT,
            "prompt_mask": torch.ones_like(PROMPT),
            "completion_ids": token[None, None],
            "completion_mask": torch.ones(1, 1, dtype=torch.long),
            "advantages": torch.zeros(1),
            "old_per_token_logps": old[token][None, None],
            "ref_per_token_logps": ref[token][None, None],
        }
        if kept is not None:
            inputs["sampling_mask"] = pack_bits(kept)[None, None]
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, inputs).backward()
        total = total + old[token].exp() * flat(trainer.model)
    return total


def true_gradient(model, ref: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """The gradient of the reverse KL divergence, from all probabilities."""
    log_probs = next_log_probs(model, kept)
    possible = ref > -torch.inf
    model.zero_grad()
    (log_probs[possible].exp() * (log_probs - ref)[possible]).sum().backward()
    return flat(model)


@pytest.mark.parametrize("truncated", [False, True])
def test_ratio_times_k3_has_the_gradient_of_the_reverse_kl_divergence_and_plain_k3_has_not(
    truncated, folder, make_trainer
):
    kept = torch.rand(VOCAB, generator=torch.Generator().manual_seed(1)) < 0.4 if truncated else None
    with torch.no_grad():
        old, ref = (next_log_probs(moved(folder, seed), kept) for seed in (1, 2))
    errors = {}
    for corrected in (True, False):
        trainer = make_trainer(
            str(folder), beta=1.0, use_bias_correction_kl=corrected, off_policy_mask_threshold=None, temperature=1.0
        )
        found = expected_gradient(trainer, old, ref, kept)
        exact = true_gradient(trainer.model, ref, kept)
        errors[corrected] = ((found - exact).norm() / exact.norm()).item()
    assert errors[True] < 1e-5
    assert errors[False] > 0.05


def test_without_the_mask_truncated_sampling_has_a_wrong_gradient(folder, make_trainer):
    kept = torch.rand(VOCAB, generator=torch.Generator().manual_seed(1)) < 0.4
    old_model, ref_model = moved(folder, 1), moved(folder, 2)
    with torch.no_grad():
        old, ref = next_log_probs(old_model, kept), next_log_probs(ref_model, kept)
        whole_old, whole_ref = next_log_probs(old_model, None), next_log_probs(ref_model, None)
    trainer = make_trainer(str(folder), beta=1.0, off_policy_mask_threshold=None, temperature=1.0)
    # As in TRL: sample from the kept set, but score over the full vocabulary.
    drawn = torch.where(kept, whole_old, -torch.inf)
    found = expected_gradient(trainer, drawn, whole_ref, None) / drawn.exp().sum()
    exact = true_gradient(trainer.model, ref, kept)
    assert ((found - exact).norm() / exact.norm()).item() > 0.05
    found = expected_gradient(trainer, old, ref, kept)
    assert ((found - exact).norm() / exact.norm()).item() < 1e-5


def as_inputs(batch, advantages: list[float]) -> dict:
    """A micro-batch as TRL passes it to the loss, without log-probabilities."""
    return {
        "prompt_ids": batch.input_ids[:, : batch.split],
        "prompt_mask": batch.attention_mask[:, : batch.split],
        "completion_ids": batch.input_ids[:, batch.split :],
        "completion_mask": batch.attention_mask[:, batch.split :],
        "advantages": torch.tensor(advantages),
    }


def test_bad_samples_that_are_far_off_policy_are_dropped_and_counted(make_trainer):
    """M = 0 where A < 0 and the mean of log(old / current) is above the threshold; the KL term stays."""
    trainer = make_trainer(beta=0.1, off_policy_mask_threshold=0.5)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = make_batch([(6, [3, 3, 3, 3])])
    inputs = as_inputs(batch, advantages=[-1.0, -1.0, 1.0, 0.0])
    with torch.no_grad():
        now = trainer._get_per_token_logps_and_entropies(trainer.model, batch.input_ids, batch.attention_mask, 3)[0]
    far = torch.tensor([[0.6], [0.4], [0.6], [0.6]])  # nats a token
    inputs["old_per_token_logps"], inputs["ref_per_token_logps"] = now + far, now + 0.2
    loss = trainer._compute_loss(trainer.model, inputs).item()
    ratio = torch.exp(-far)
    kept = torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    advantages = inputs["advantages"][:, None]
    policy = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * kept
    kl = ratio * (torch.tensor(0.2).exp() - 0.2 - 1)
    assert loss == pytest.approx((policy + 0.1 * kl).mean().item(), abs=1e-6)
    assert trainer._metrics["train"]["off_policy/masked_share"] == [0.25]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_without_masks_loss_and_gradient_are_those_of_the_stock_trainer(loss_type, make_trainer):
    batch = make_batch(UNEVEN)
    inputs = as_inputs(batch, torch.linspace(-1, 1, 8).tolist())
    inputs["num_items_in_batch"] = batch.attention_mask[:, batch.split :].sum()
    results = []
    for trainer_class in (None, GRPOTrainer):
        kind = {"trainer_class": trainer_class} if trainer_class else {}
        trainer = make_trainer(beta=0.1, loss_type=loss_type, off_policy_mask_threshold=0.5, temperature=0.9, **kind)
        trainer.current_gradient_accumulation_steps = 2
        trainer.model.train()
        args = batch.input_ids, batch.attention_mask, batch.keep.shape[1]
        with torch.no_grad():
            ref = trainer._get_per_token_logps_and_entropies(trainer.ref_model, *args)[0]
        jitter = 0.3 * torch.randn(ref.shape, generator=torch.Generator().manual_seed(0))
        loss = trainer._compute_loss(
            trainer.model, {**inputs, "old_per_token_logps": ref + jitter, "ref_per_token_logps": ref - jitter}
        )
        loss.backward()
        results.append((loss.item(), flat(trainer.model), dict(trainer._metrics["train"])))
    (ours, our_gradient, our_metrics), (theirs, their_gradient, their_metrics) = results
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert (our_gradient - their_gradient).norm() < 1e-6 * their_gradient.norm()
    assert their_metrics
    for name, values in their_metrics.items():
        assert our_metrics[name] == pytest.approx(values, abs=1e-5), name
