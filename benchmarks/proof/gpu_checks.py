"""What only a GPU can show. Skipped without one: `python -m benchmarks.proof checks` runs them first on a new machine.

They lie here because the tests of `tests/` see no GPU. None of these has run yet. Sizes are those of the full model,
for its heads of 72 are what kernels may refuse.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.doctor.model import RandomRows, random_rows
from modeling_pure.grpo.rollout import Decoding, Rollout, sample_completions
from modeling_pure.grpo.sampling import SamplingParams
from modeling_pure.grpo.shared_prefix import add_scoring
from modeling_pure.training.arguments import PureTrainingArguments
from modeling_pure.training.health import NonFiniteGuard
from modeling_pure.training.kernels import varlen_attention
from modeling_pure.training.optimizer import MuonWithAdamW
from modeling_pure.training.trainer import PureTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CONFIG = PureConfig(head_initializer_range=0.02)
PARAMS = SamplingParams(1.0, 512, 0.95, suppress_tokens=tuple(CONFIG.suppressed_tokens))
END, PAD = 50256, 50257


@pytest.fixture
def model() -> PureForCausalLM:
    """The full model with random weights."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        return PureForCausalLM(CONFIG).eval()


def rollout(model: PureForCausalLM, prompts: list[list[int]], tokens: int) -> Rollout:
    """Completions in bf16 autocast, always of the same draw."""
    torch.manual_seed(0)
    with torch.autocast("cuda", torch.bfloat16):
        return sample_completions(model, prompts, PARAMS, tokens, [END], PAD)


def test_documents_kept_apart_by_lengths_equal_a_mask():
    torch.manual_seed(0)
    length, ends = 256, [100, 256, 300, 512]
    states = [
        torch.randn(2, heads, length, 72, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (16, 4, 4)
    ]
    query, key, value = states
    lengths = torch.tensor([0, *ends], dtype=torch.int32, device="cuda")
    module = SimpleNamespace(num_key_value_groups=4)
    ours = varlen_attention(module, query, key, value, None, 72**-0.5, lengths, lengths, 212, 212)[0]
    gradients = torch.autograd.grad(ours.float().pow(2).sum(), states)
    document = torch.bucketize(torch.arange(512, device="cuda"), lengths[1:], right=True).view(2, length)
    causal = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()
    mask = (document[:, :, None] == document[:, None]) & causal
    wide = [states[0].float(), *(one.float().repeat_interleave(4, 1) for one in states[1:])]
    exact = F.scaled_dot_product_attention(*wide, attn_mask=mask[:, None], scale=72**-0.5).transpose(1, 2)
    expected = torch.autograd.grad(exact.pow(2).sum(), states)
    torch.testing.assert_close(ours.float(), exact, atol=0.03, rtol=0)
    for found, right in zip(gradients, expected, strict=True):
        assert (found - right).abs().max() < 0.03 * right.abs().max()


def test_a_decoding_step_is_captured_and_replayed_as_it_runs(model, monkeypatch):
    prompts = [[number + 2] * (200 + number) for number in range(4) for _ in range(8)]
    monkeypatch.setattr(Decoding, "graphs", True)
    replayed = rollout(model, prompts, 48)
    assert Decoding.graphs, "the step could not be captured; the warning says why"
    monkeypatch.setattr(Decoding, "graphs", False)
    plain = rollout(model, prompts, 48)
    assert replayed.completion_ids == plain.completion_ids


def test_a_capture_that_fails_does_not_take_the_run_with_it(model, monkeypatch):
    advance = Decoding.advance

    def advance_and_read(self: Decoding) -> None:
        advance(self)
        self.step.item()  # what a capture does not allow

    monkeypatch.setattr(Decoding, "graphs", True)
    monkeypatch.setattr(Decoding, "advance", advance_and_read)
    assert len(rollout(model, [[3, 4, 5]] * 4, 12).completion_ids) == 4
    assert not Decoding.graphs and torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(2, device="cuda").isfinite().all()


def test_sampler_and_scorer_agree_in_bf16(model):
    prompts = [[number + 2] * (60 + number) for number in range(4) for _ in range(4)]
    sampled = rollout(model, prompts, 24)
    prompt, completion = max(map(len, prompts)), max(map(len, sampled.completion_ids))
    ids = torch.full((len(prompts), prompt + completion), PAD)
    mask = torch.zeros_like(ids)
    for row, (asked, said) in enumerate(zip(prompts, sampled.completion_ids, strict=True)):
        place = slice(prompt - len(asked), prompt + len(said))
        ids[row, place], mask[row, place] = torch.tensor(asked + said), 1
    add_scoring(model.train(), 1.0, True, True)
    with torch.autocast("cuda", torch.bfloat16):
        scored = model(
            input_ids=ids.cuda(),
            attention_mask=mask.cuda(),
            completion_length=completion,
            sampling_mask=sampled.sampling_mask,
        ).log_probs
    scored.sum().backward()
    differences = torch.cat(
        [scored[row, : len(one)].cpu() - torch.tensor(one) for row, one in enumerate(sampled.log_probs)]
    ).abs()
    assert differences.mean() < 0.02 and differences.max() < 0.3  # bf16
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_is_not_finite_is_skipped_without_a_word_to_the_host(optimizer):
    weights = [torch.nn.Parameter(torch.randn(64, 64, device="cuda")) for _ in range(2)]
    first, second = weights
    if optimizer == "adamw":
        steps = torch.optim.AdamW(weights, fused=True)
    else:
        steps = MuonWithAdamW([first], [second], 1e-3, 0.1, (0.9, 0.95), 1e-8)
    guard, unchanged = NonFiniteGuard(5, 15, first.device), []
    for factor in (1.0, float("nan"), 1.0):
        for weight in weights:
            weight.grad = torch.randn_like(weight) * factor
        before = first.detach().clone()
        torch.cuda.set_sync_debug_mode("error")
        try:
            guard.check(torch.nn.utils.clip_grad_norm_(weights, 1.0), steps, 1)
            steps.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        unchanged.append(torch.equal(before, first))
    assert unchanged == [False, True, False]


def test_running_out_of_memory_halves_the_pass(tmp_path):
    """With data workers, which are forked once CUDA has started."""
    memory = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 24e9 / memory))
    try:
        arguments = PureTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=16,
            compile_layers=False,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            dataloader_num_workers=2,
            logging_steps=1,
        )
        with torch.device("cuda"):
            model = PureForCausalLM(PureConfig())
        trainer = PureTrainer(model, arguments, train_dataset=RandomRows(random_rows(50_304, 2048, 32)))
        trainer.train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert trainer.rows_per_pass < 16
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 3 and all(10 < loss < 12 for loss in losses)
