"""Completions are sampled like `generate` does, with their probabilities and masks."""

from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chi2_contingency
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, PreTrainedModel

from modeling_pure.grpo import rollout as module
from modeling_pure.grpo.fallbacks import generate_completions
from modeling_pure.grpo.rollout import Decoding, completion_length, gather_rollout, sample_completions
from modeling_pure.grpo.sampling import SamplingParams, TokenSampler, draw, uniform_numbers, unpack_bits
from modeling_pure.grpo.scoring import CompletionBatch, Scorer
from tests.grpo.conftest import FAMILIES, make_model, make_windowed_model

VOCAB, PAD = 411, 1
SETTINGS = {"temperature": 0.8, "top_k": 50, "top_p": 0.9}
ONE_END, MANY_ENDS = [0], list(range(0, VOCAB, 8))


def make_prompts(*groups: tuple[int, int]) -> list[list[int]]:
    """`(length, completions)` of each group as a list of prompts."""
    generator = torch.Generator().manual_seed(1)
    return [
        prompt
        for length, count in groups
        for prompt in [torch.randint(3, VOCAB, (length,), generator=generator).tolist()] * count
    ]


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def generated(model, prompts, ends, tokens: int, suppress=(5, 6)) -> list[list[int]]:
    """What transformers' `generate` samples with the same settings."""
    ids, mask = left_padded(prompts)
    config = GenerationConfig(
        do_sample=True,
        max_new_tokens=tokens,
        eos_token_id=ends,
        pad_token_id=PAD,
        suppress_tokens=list(suppress),
        **SETTINGS,
    )
    model.generation_config = GenerationConfig()
    rows = model.generate(ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :].tolist()
    return [row[: completion_length(row, ends)] for row in rows]


def sampled(model, prompts, ends, tokens: int, sample=sample_completions, uniform=None):
    params = SamplingParams(**SETTINGS, suppress_tokens=(5, 6))
    return sample(model, prompts, params, tokens, ends, PAD, uniform=uniform)


def drawing_as_we_do(uniform: torch.Tensor):
    """A replacement of `torch.multinomial`, which takes a random number per token of the vocabulary."""
    columns = iter(uniform.T)

    def multinomial(probs: torch.Tensor, num_samples: int) -> torch.Tensor:
        likeliest, ids = probs.topk(SETTINGS["top_k"])
        return ids.gather(1, draw(likeliest.log(), next(columns)))

    return multinomial


@pytest.mark.parametrize("ends", [ONE_END, MANY_ENDS], ids=["one_end", "many_ends"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_numbers_give_the_tokens_of_generate(family, ends, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 4)  # buffers grow, masks are added, and with many ends the batch shrinks
    model, prompts = make_model(family).eval(), make_prompts((11, 4), (5, 4), (8, 4))
    uniform = uniform_numbers("numbers", 12, 12)
    ours = sampled(model, prompts, ends, 12, uniform=uniform).completion_ids
    assert ours == sampled(model, prompts, ends, 12, generate_completions, uniform).completion_ids
    monkeypatch.setattr(torch, "multinomial", drawing_as_we_do(uniform))
    assert ours == generated(model, prompts, ends, 12)
    if ends is MANY_ENDS:
        assert len({len(row) for row in ours}) > 1


@pytest.mark.parametrize("sample", [sample_completions, generate_completions])
def test_completions_do_not_depend_on_how_the_batch_is_split(sample):
    """As on two processes, even if they share a group."""
    model, prompts = make_model("pure").eval(), make_prompts((11, 4), (5, 4), (8, 4))
    uniform = uniform_numbers("numbers", 12, 12)
    whole = sampled(model, prompts, MANY_ENDS, 12, sample, uniform).completion_ids
    parts = [slice(0, 6), slice(6, 12)]
    shared = [sampled(model, prompts[part], MANY_ENDS, 12, sample, uniform[part]).completion_ids for part in parts]
    assert whole == [*shared[0], *shared[1]]
    assert len({tuple(ids) for ids in whole}) > 6


def scores_of(model, prompts, rollout, temperature: float) -> torch.Tensor:
    """A rollout's log-probabilities as training computes them, flattened."""
    ids, mask = left_padded(prompts)
    longest = max(map(len, rollout.completion_ids))
    rows = torch.tensor([row + [PAD] * (longest - len(row)) for row in rollout.completion_ids])
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rollout.completion_ids])
    with torch.no_grad():
        batch = CompletionBatch(torch.cat([ids, rows], 1), torch.cat([mask, real], 1), longest, rollout.sampling_mask)
        found = Scorer(model, temperature, fp32_head=True, share_prefix=True)(batch)
    return found.log_probs[real.bool()]


@pytest.mark.parametrize("sample", [sample_completions, generate_completions])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_of_sampling_equal_those_of_training(family, sample):
    model, prompts = make_model(family).eval(), make_prompts((11, 4), (5, 3), (8, 1))
    torch.manual_seed(4)
    rollout = sampled(model, prompts, MANY_ENDS, 20, sample)
    flat = torch.tensor([value for row in rollout.log_probs for value in row])
    assert [len(row) for row in rollout.log_probs] == [len(row) for row in rollout.completion_ids]
    torch.testing.assert_close(flat, scores_of(model, prompts, rollout, SETTINGS["temperature"]), atol=1e-5, rtol=0)
    unmasked = rollout.sampling_mask
    rollout.sampling_mask = None
    assert (flat - scores_of(model, prompts, rollout, SETTINGS["temperature"])).mean() > 0.05
    kept = unpack_bits(unmasked, VOCAB)
    for row, (ids, sizes) in enumerate(zip(rollout.completion_ids, rollout.kept, strict=True)):
        assert kept[row, : len(ids)].sum(1).tolist() == sizes
        assert max(sizes) <= 50
        assert kept[row, range(len(ids)), ids].all()
        assert not kept[row, : len(ids), 5:7].any()


def test_completions_are_distributed_as_those_of_generate():
    """Over pairs of tokens, so that the second draw and the key-value cache count too."""
    model, prompts = make_model("pure").eval(), make_prompts((6, 1500), (9, 1500))
    counts = []
    for seed, sample in enumerate(
        (lambda: sampled(model, prompts, ONE_END, 2).completion_ids, lambda: generated(model, prompts, ONE_END, 2))
    ):
        torch.manual_seed(seed)
        counts.append(Counter((i // 1500, *row) for i, row in enumerate(sample())))
    common = [key for key in counts[0] | counts[1] if counts[0][key] + counts[1][key] >= 10]
    table = [[count[key] for key in common] for count in counts]
    rest = [3000 - sum(row) for row in table]
    assert len(common) > 10  # enough for the test to be meaningful
    assert chi2_contingency([[*row, other] for row, other in zip(table, rest, strict=True)]).pvalue > 1e-3


def test_each_prompt_is_computed_once_and_finished_completions_leave():
    model, shapes = make_model("pure").eval(), []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    torch.manual_seed(3)
    rollout = sampled(model, make_prompts((11, 8), (5, 8)), MANY_ENDS, 30)
    assert shapes[0] == (2, 11)
    assert shapes[1] == (16, 1)
    assert len(shapes) == max(map(len, rollout.completion_ids))
    sizes = [rows for rows, _ in shapes[1:]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 8


def test_uneven_groups_keep_their_order():
    model, prompts = make_model("pure").eval(), make_prompts((7, 1), (4, 5), (9, 2))
    torch.manual_seed(0)
    rollout = sampled(model, prompts, MANY_ENDS, 9)
    flat = torch.tensor([value for row in rollout.log_probs for value in row])
    torch.testing.assert_close(flat, scores_of(model, prompts, rollout, SETTINGS["temperature"]), atol=1e-5, rtol=0)


def test_without_cuts_no_mask_is_kept():
    model = make_model("pure").eval()
    rollout = sample_completions(model, make_prompts((4, 2)), SamplingParams(), 3, ONE_END, PAD)
    assert rollout.sampling_mask is None
    assert {size for row in rollout.kept for size in row} == {VOCAB}


def test_a_model_with_windows_is_sampled_by_generate_with_the_same_masks():
    model, prompts = make_windowed_model().eval(), make_prompts((11, 3), (5, 3))
    torch.manual_seed(2)
    rollout = sampled(model, prompts, MANY_ENDS, 12, generate_completions)
    for row, (prompt, completion) in enumerate(zip(prompts, rollout.completion_ids, strict=True)):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / SETTINGS["temperature"]
        kept = unpack_bits(rollout.sampling_mask[row, : len(completion)], VOCAB)
        expected = logits.masked_fill(~kept, -torch.inf).log_softmax(-1).gather(1, torch.tensor(completion)[:, None])
        torch.testing.assert_close(torch.tensor(rollout.log_probs[row]), expected[:, 0], atol=1e-5, rtol=0)


class NothingIsRead(TorchDispatchMode):
    """Fails if a value is read from the device or a shape depends on one, which a CUDA graph cannot capture."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.READS), f"{func} reads from the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_neither_synchronises_nor_moves_its_tensors(family):
    model = make_model(family).eval()
    if family != "gpt2":  # which then looks for padding, except during capture
        model.config.pad_token_id = PAD  # as TRL sets it
    params = SamplingParams(**SETTINGS, min_p=0.01, suppress_tokens=(5, 6), min_new_tokens=2)
    decoding = Decoding(model, TokenSampler(params, ONE_END, torch.device("cpu")), True, PAD)
    with torch.no_grad(), module.attention_of(model, "sdpa"):
        decoding.start([[3, 4, 5], [6, 7]], [2, 2], uniform_numbers("numbers", 4, 8))
    tensors = {name: value.data_ptr() for name, value in vars(decoding).items() if isinstance(value, torch.Tensor)}
    with torch.no_grad(), module.attention_of(model, module.ATTENTION), NothingIsRead():
        decoding.advance()
        decoding.advance()
    assert decoding.step.item() == 3
    assert tensors == {name: getattr(decoding, name).data_ptr() for name in tensors}
    assert model.config._attn_implementation == "sdpa"


def started(model: PreTrainedModel) -> Decoding:
    """A batch of two groups after its first token."""
    decoding = Decoding(model, TokenSampler(SamplingParams(), ONE_END, torch.device("cpu")), True, PAD)
    with torch.no_grad():
        decoding.start([[3, 4, 5], [6, 7]], [2, 2], uniform_numbers("numbers", 4, 8))
    return decoding


@pytest.mark.parametrize("family", ["pure", "llama"])
def test_under_autocast_keys_and_values_are_kept_in_its_dtype(family):
    with torch.autocast("cpu", torch.bfloat16):
        cache = started(make_model(family).eval()).cache
    states = [state for layer in (*cache.prompts, *cache.own) for state in layer]
    assert {state.dtype for state in states} == {torch.bfloat16}


class WeightCasts(TorchDispatchMode):
    """Counts the casts of each of a model's weights."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.weights, self.counts = {weight.data_ptr() for weight in model.parameters()}, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_to_copy" in str(func) and args[0].data_ptr() in self.weights:
            self.counts[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def test_under_autocast_frozen_weights_are_cast_once_per_rollout():
    """Weights under adapters are frozen, and autocast by itself only caches casts of trained weights."""
    model = make_model("pure").eval().requires_grad_(False)
    casts = WeightCasts(model)
    with torch.autocast("cpu", torch.bfloat16), casts:
        sampled(model, make_prompts((4, 2)), ONE_END, 5)
    assert len(casts.counts) == 2 * 7
    assert set(casts.counts.values()) == {1}
    assert not any(weight.requires_grad for weight in model.parameters())


class FakeGenerator:
    """A stand-in for a GPU generator during capture."""

    def __init__(self):
        self.state = "before"

    def clone_state(self):
        return self.state

    def graphsafe_set_state(self, state):
        self.state = state


@pytest.fixture
def fake_gpu(monkeypatch):
    """Stand-ins for what capture calls in `torch.cuda`, with the current stream and the generator."""
    device = SimpleNamespace(stream="main", generator=FakeGenerator(), fails=False)

    @contextmanager
    def graph(graph, capture_error_mode):
        device.stream, device.generator.state = "capture", "capturing"
        yield
        if device.fails:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")
        device.stream, device.generator.state = "main", "after"

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay="replay"))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: device.stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(device, "stream", stream))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (device.generator,))
    monkeypatch.setattr(Decoding, "graphs", True)
    return device


def test_a_step_that_can_be_captured_is_replayed(fake_gpu):
    decoding = started(make_model("pure").eval())
    with torch.no_grad(), module.attention_of(decoding.model, module.ATTENTION):
        assert decoding.captured() == "replay"
        assert decoding.graphs
    assert (fake_gpu.stream, fake_gpu.generator.state) == ("main", "after")


def test_after_a_failed_capture_steps_run_eagerly(fake_gpu, caplog):
    """A failed capture leaves torch's stream and generator in a state in which no number can be sampled."""
    fake_gpu.fails = True
    decoding = started(make_model("pure").eval())
    with torch.no_grad(), module.attention_of(decoding.model, module.ATTENTION):
        assert decoding.captured() == decoding.advance
    assert not decoding.graphs
    assert (fake_gpu.stream, fake_gpu.generator.state) == ("main", "before")
    (message,) = caplog.messages
    assert message.endswith(": CUDA error: operation failed due to a previous error during capture")


def test_masks_stay_on_the_device_that_scores_them():
    """100 MB per step would be copied, and reordered by the CPU."""
    numbers = torch.ones(2, 3)
    masks = torch.empty(2, 3, 52, dtype=torch.uint8, device="meta")
    gathered = gather_rollout(torch.tensor([[3, 0, 1], [3, 4, 0]]), numbers, numbers, masks, ONE_END)
    assert gathered.completion_ids == [[3, 0], [3, 4, 0]]
    assert gathered.sampling_mask.device.type == "meta"
    assert gathered.sampling_mask.shape == (2, 3, 52)
