"""Prompts computed once per group give the log-probabilities and gradients of full sequences."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from modeling_pure import PureForCausalLM
from modeling_pure.grpo.scoring import CompletionBatch, Scorer
from modeling_pure.grpo.support import shared_prefix_obstacle
from tests.grpo.conftest import FAMILIES, UNEVEN, Batch, make_batch, make_model, make_windowed_model

TEMPERATURE = 0.8


def by_rows(model, batch: Batch, masked: bool) -> torch.Tensor:
    """Log-probabilities (batch, completion) of each sequence separately, through the model's own forward."""
    result = torch.zeros(batch.input_ids.shape[0], batch.keep.shape[1])
    for row, (prompt, completion) in enumerate(batch.rows):
        if completion:
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
            if masked:
                logits = logits.masked_fill(~batch.keep[row, : len(completion)], -torch.inf)
            log_probs = (logits / TEMPERATURE).log_softmax(-1)
            result[row, : len(completion)] = log_probs.gather(1, torch.tensor(completion)[:, None])[:, 0]
    return result


def score(model, batch: Batch, share_prefix: bool, masked: bool = True):
    scorer = Scorer(model, TEMPERATURE, True, share_prefix)
    mask = batch.packed if masked else None
    return scorer(CompletionBatch(batch.input_ids, batch.attention_mask, batch.keep.shape[1], mask))


def gradients(model, log_probs: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(5))
    model.zero_grad()
    (log_probs * weights).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(ours: dict, theirs: dict) -> None:
    """To 1e-6 of the norm of the full gradient; small ones differ more, since large parts cancel out."""
    assert ours.keys() == theirs.keys()
    difference, whole = (
        torch.cat([x.flatten() for x in gradients]).norm()
        for gradients in ([ours[name] - theirs[name] for name in theirs], theirs.values())
    )
    assert difference < 1e-6 * whole


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_equal_those_of_single_sequences(family, attention):
    model, batch = make_model(family, attention), make_batch(UNEVEN)
    assert shared_prefix_obstacle(model, checkpointing=False) is None
    expected = by_rows(model, batch, masked=True)
    theirs = gradients(model, expected)
    for share_prefix in (True, False):
        found = score(model, batch, share_prefix).log_probs
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert_equal_gradients(gradients(model, found), theirs)


SCALED_ROPE = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8},
    "dynamic": {"factor": 4.0},
    "longrope": {
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 8,
    },
}


def make_scaled_model(rope_type: str):
    config = FAMILIES["pure"]()
    config.rope_parameters = {"rope_type": rope_type, "rope_theta": 100.0, **SCALED_ROPE[rope_type]}
    torch.manual_seed(0)
    return PureForCausalLM(config).train()


@pytest.mark.parametrize("rope_type", ["linear", "yarn", "llama3"])
def test_prompts_are_shared_under_a_scaled_rope(rope_type):
    model, batch = make_scaled_model(rope_type), make_batch(UNEVEN)
    assert shared_prefix_obstacle(model, checkpointing=False) is None
    expected = by_rows(model, batch, masked=True)
    found = score(model, batch, share_prefix=True).log_probs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert_equal_gradients(gradients(model, found), gradients(model, expected))
    assert not torch.allclose(found, score(make_model("pure"), batch, share_prefix=True).log_probs, atol=1e-2)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_prompts_are_not_shared_if_rope_depends_on_the_longest_sequence(rope_type):
    assert "rotary" in shared_prefix_obstacle(make_scaled_model(rope_type), checkpointing=False)


def test_each_prompt_is_computed_once_per_group():
    model, batch, seen = make_model("pure"), make_batch(UNEVEN), []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    score(model, batch, share_prefix=True)
    assert seen == [(3, 11), (8, 5)]  # groups x longest prompt, rows x longest completion but its last token
    seen.clear()
    score(model, batch, share_prefix=False)
    assert [rows for rows, _ in seen] == [8]


def test_parts_of_a_group_score_like_the_whole_group():
    model, batch = make_model("pure"), make_batch([(9, [4, 2, 3, 4, 1, 4])])
    whole = score(model, batch, share_prefix=True).log_probs
    for rows in (slice(0, 4), slice(4, 6), slice(2, 3)):
        part = Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.keep[rows], batch.split)
        torch.testing.assert_close(score(model, part, True).log_probs, whole[rows], atol=1e-5, rtol=0)


def test_completions_of_one_token_are_scored_from_the_prompt_alone():
    model, batch = make_model("pure"), make_batch([(5, [1, 1]), (3, [1])])
    torch.testing.assert_close(score(model, batch, True).log_probs, by_rows(model, batch, True), atol=1e-5, rtol=0)


def test_a_batch_with_nothing_to_score_has_a_zero_gradient():
    model, batch = make_model("pure"), make_batch([(5, [2, 2])])
    batch.attention_mask[:, batch.split :] = 0
    for share_prefix in (True, False):
        found = score(model, batch, share_prefix)
        assert not found.log_probs.any()
        assert not found.entropy.any()
        assert all(not gradient.any() for gradient in gradients(model, found.log_probs).values())


def test_in_bf16_shared_prompts_add_no_more_than_rounding_noise():
    model, batch = make_model("pure"), make_batch(UNEVEN)
    exact = by_rows(model, batch, masked=True)
    with torch.autocast("cpu", torch.bfloat16):
        shared, rows = (score(model, batch, share).log_probs for share in (True, False))
    scored = exact != 0
    noise = (rows - exact)[scored].abs().mean()
    assert noise > 1e-4  # bf16 was in use
    assert (shared - exact)[scored].abs().mean() < 1.5 * noise


def test_adapters_are_scored_trained_and_can_be_disabled():
    batch, plain = make_batch(UNEVEN), make_model("pure")
    model = get_peft_model(make_model("pure"), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # starts at zero, where adapters have no effect
            torch.nn.init.normal_(parameter, std=0.1)
    found = score(model, batch, share_prefix=True).log_probs
    expected = by_rows(model, batch, masked=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert_equal_gradients(gradients(model, found), gradients(model, expected))
    with model.disable_adapter():
        torch.testing.assert_close(score(model, batch, True).log_probs, by_rows(plain, batch, True), atol=1e-5, rtol=0)
    assert (found - by_rows(plain, batch, True)).abs().max() > 0.1


def test_scoring_leaves_the_model_unchanged():
    model, batch = make_model("pure"), make_batch(UNEVEN)
    before, keys = model(batch.input_ids).logits, [*model.state_dict()]
    score(model, batch, share_prefix=True)
    assert torch.equal(model(batch.input_ids).logits, before)
    assert [*model.state_dict()] == keys
    assert "forward" not in vars(model)


def test_obstacles_to_sharing_prompts_are_named_and_full_sequences_still_score():
    windowed, batch = make_windowed_model(), make_batch([(11, [6, 2])])
    assert "MistralForCausalLM" in shared_prefix_obstacle(windowed, False)
    torch.testing.assert_close(
        score(windowed, batch, False).log_probs, by_rows(windowed, batch, True), atol=1e-5, rtol=0
    )
    pure = make_model("pure")
    assert shared_prefix_obstacle(pure, True).startswith("gradient_checkpointing ")
    pure.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in shared_prefix_obstacle(pure, False)
