"""Scaled RoPE equals that of transformers' Llama to the last bit, wherever positions are used."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, set_seed

from modeling_pure import PureConfig, PureForCausalLM, PureModel
from modeling_pure.modeling_pure import PureRotaryEmbedding
from modeling_pure.training.kernels import compile_layers

LENGTH, ORIGINAL = 48, 24  # the context, and the original context of yarn, longrope and llama3
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": LENGTH,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
ROPE = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "short_factor": [1.0 + 0.1 * i for i in range(16)],
        "long_factor": [2.0 + 0.3 * i for i in range(16)],
        "original_max_position_embeddings": ORIGINAL,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
}
LENGTH_BOUND = ("dynamic", "longrope")  # the frequencies depend on the longest position of a batch


def rope(rope_type: str) -> dict:
    """Parameters of this type; `default` has none."""
    return {"rope_type": rope_type, "rope_theta": 500.0, **ROPE.get(rope_type, {})}


def make_pair(rope_type: str, implementation: str = "sdpa", dtype: torch.dtype = torch.float32, **parameters):
    """A Pure model and the Llama with the same weights."""
    set_seed(0)
    how = {"attn_implementation": implementation, "dtype": dtype}
    wide = {"initializer_range": 0.15, "head_initializer_range": 0.15}
    given = {**rope(rope_type), **parameters}
    pure = PureForCausalLM._from_config(PureConfig(**SHAPE, **wide, rope_parameters=dict(given)), **how)
    llama = LlamaForCausalLM._from_config(LlamaConfig(**SHAPE, rope_parameters=dict(given)), **how)
    assert not llama.load_state_dict(pure.state_dict(), strict=False).unexpected_keys
    return pure.eval(), llama.eval()


def tokens(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(2, 128, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rope_type", ROPE)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_equal_llama_within_and_beyond_the_context(rope_type, implementation, dtype):
    """Short, long and short again: a long batch must not affect the next one."""
    pure, llama = make_pair(rope_type, implementation, dtype)
    plain, _ = make_pair("default", implementation, dtype)
    with torch.no_grad():
        for length in (20, 70, 20, 100, 30):
            ids = tokens(length)
            ours = pure(ids).logits
            assert torch.equal(ours, llama(ids).logits), length
            unscaled = rope_type == "dynamic" and length <= LENGTH
            assert torch.equal(ours, plain(ids).logits) == unscaled
    assert pure.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("rope_type", ROPE)
def test_gradients_packing_and_padding_equal_llama(rope_type):
    pure, llama = make_pair(rope_type)
    ids = tokens(70)
    for twin in (pure, llama):
        twin.train()(ids, labels=ids).loss.backward()
        twin.eval()
    expected = {name: p.grad for name, p in llama.named_parameters()}
    assert all(torch.equal(p.grad, expected[name]) for name, p in pure.named_parameters())
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    packed = torch.cat([torch.arange(15), torch.arange(55)]).repeat(2, 1)
    with torch.no_grad():
        for inputs in ({"attention_mask": mask}, {"position_ids": packed, "use_cache": False}):
            assert torch.equal(pure(ids, **inputs).logits, llama(ids, **inputs).logits)


@pytest.mark.parametrize("rope_type", ROPE)
@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 2}, {"cache_implementation": "static", "disable_compile": True}], ids=str
)
def test_cached_generation_beyond_the_context_equals_llama(rope_type, how):
    pure, llama = make_pair(rope_type)
    greedy = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 1, **how}
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    ours, theirs = (twin.generate(tokens(12), attention_mask=mask, **greedy) for twin in (pure, llama))
    assert ours.shape == (2, 72)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rope_type", [name for name in ROPE if name not in LENGTH_BOUND])
def test_a_cached_step_beyond_the_context_equals_the_full_forward(rope_type):
    pure, _ = make_pair(rope_type)
    ids, cache = tokens(100), DynamicCache(config=pure.config)
    with torch.no_grad():
        parts = [pure(part, past_key_values=cache).logits for part in ids.split([30, 69, 1], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), pure(ids).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rope_type", ROPE)
def test_a_saved_model_keeps_its_rope_and_takes_another(rope_type, tmp_path):
    """Loading computes what is not stored, such as frequencies, after building on the meta device."""
    pure, _ = make_pair(rope_type)
    plain, _ = make_pair("default")
    plain.load_state_dict(pure.state_dict())
    pure.save_pretrained(tmp_path / "scaled")
    plain.save_pretrained(tmp_path / "plain")
    ids = tokens(70)
    loaded = PureForCausalLM.from_pretrained(tmp_path / "scaled")
    changed = PureForCausalLM.from_pretrained(tmp_path / "plain", rope_parameters=rope(rope_type))
    legacy = {"type": rope_type, **ROPE[rope_type]}  # theta comes from the folder
    by_old_name = PureForCausalLM.from_pretrained(tmp_path / "plain", rope_scaling=legacy)
    with torch.no_grad():
        for length in (70, 20):  # a short batch after a long one has the same frequencies as before
            expected = pure(ids[:, :length]).logits
            for model in (loaded, changed, by_old_name):
                assert torch.equal(model(ids[:, :length]).logits, expected)
                assert torch.equal(model.model.rotary_emb.inv_freq, pure.model.rotary_emb.inv_freq)
        half, other = (one.to(torch.bfloat16)(ids).logits for one in (loaded, changed))
    assert torch.equal(half, other)
    # Within the context, the frequencies are those of a new model.
    short = PureForCausalLM.from_pretrained(tmp_path / "scaled", dtype=torch.bfloat16)
    assert torch.equal(short.model.rotary_emb.inv_freq, make_pair(rope_type)[0].model.rotary_emb.inv_freq)


@pytest.mark.parametrize("rope_type", ["yarn", "dynamic"])
def test_compiled_layers_compute_the_same(rope_type, monkeypatch):
    """Frequencies are computed outside the layers, so that layers are not recompiled when they change."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pure, _ = make_pair(rope_type)
    compiled, _ = make_pair(rope_type)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: set_compiled(self))
    compile_layers(compiled)
    for length in (20, 70):
        ids = tokens(length)
        for model in (pure, compiled):
            model.zero_grad()
            model.train()(ids, labels=ids).loss.backward()
        expected = {name: p.grad for name, p in pure.named_parameters()}
        for name, p in compiled.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-6)
    assert not torch._dynamo.utils.counters["graph_break"]


def set_compiled(module: torch.nn.Module) -> None:
    """`module.compile()` without the C++ compiler: the graph is traced, and runs as it is."""
    module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")


def frequencies(rope_type: str, length: int, **parameters) -> tuple[torch.Tensor, ...]:
    """Cosines and sines (length, head_dim) of the positions before `length`."""
    config = PureConfig(**SHAPE, rope_parameters={"rope_type": rope_type, **parameters})
    cos, sin = PureRotaryEmbedding(config=config)(torch.zeros(1), torch.arange(length)[None])
    return cos[0], sin[0]


def test_frequencies_of_each_rope_type():
    """As in transformers' shared tests of rotary embeddings."""
    plain_short, plain_long = (frequencies("default", length) for length in (10, 72))
    for short, long in zip(plain_short, plain_long, strict=True):
        assert torch.equal(short, long[:10])
    # linear: position 10 i equals position i before
    for plain, linear in zip(plain_long, frequencies("linear", 72, factor=10), strict=True):
        torch.testing.assert_close(linear[::10], plain[:8], rtol=1e-5, atol=1e-6)
    # dynamic: unchanged within the context, lower frequencies beyond
    for plain, dynamic in zip(plain_short, frequencies("dynamic", 10, factor=10), strict=True):
        assert torch.equal(dynamic, plain)
    for plain, dynamic in zip(plain_long, frequencies("dynamic", 72, factor=10), strict=True):
        assert not torch.allclose(dynamic, plain, atol=1e-3)
    rotary = PureRotaryEmbedding(PureConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 10.0}))
    before = rotary.inv_freq.clone()
    rotary(torch.zeros(1), torch.arange(72)[None])
    assert (rotary.inv_freq <= before).all()
    assert (rotary.inv_freq[1:] < before[1:]).all()
    rotary(torch.zeros(1), torch.arange(10)[None])
    assert torch.equal(rotary.inv_freq, before)
    # yarn: all positions change
    yarn_short, yarn_long = (frequencies("yarn", length, factor=10.0) for length in (10, 72))
    for plain, short, long in zip(plain_short, yarn_short, yarn_long, strict=True):
        assert torch.equal(short, long[:10])
        assert not torch.allclose(short, plain, atol=1e-3)


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn"])
def test_a_configuration_takes_another_rope_before_a_model_is_built(rope_type):
    config = PureConfig(**SHAPE)
    outputs = []
    for parameters in ({"rope_type": "default"}, {"rope_type": rope_type, "factor": 10.0}):
        config.rope_parameters = {**config.rope_parameters, **parameters}
        set_seed(0)
        model = PureModel(config).eval()
        with torch.no_grad():
            outputs.append([model(tokens(length)).last_hidden_state for length in (10, 72)])
    (plain_short, plain_long), (short, long) = outputs
    assert torch.allclose(plain_short, short, atol=1e-5) == (rope_type == "dynamic")
    assert not torch.allclose(plain_long, long, atol=1e-5)


def test_a_default_configuration_works():
    """Only the vocabulary size is given, and special tokens are set later."""
    config = PureConfig(**{name: SHAPE[name] for name in ("vocab_size", "num_hidden_layers")}, intermediate_size=32)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    with torch.no_grad():
        out = PureModel(config).eval()(tokens(7))
    assert out.last_hidden_state.isfinite().all()
