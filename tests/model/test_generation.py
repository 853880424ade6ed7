"""All ways of decoding give the same text, and never a token that cannot be decoded."""

import json

import pytest
import torch
from transformers import AutoTokenizer, DynamicCache, GenerationConfig, pipeline

from modeling_pure import PureConfig, PureForCausalLM, PureModel
from tests.model.twins import SMALL_BATCHES

GREEDY = {"max_new_tokens": 10, "do_sample": False}


@pytest.fixture
def spare_model() -> PureForCausalLM:
    """A tokenizer of 40 tokens in a vocabulary of 64: 24 rows are spare."""
    torch.manual_seed(0)
    return PureForCausalLM(PureConfig.from_preset("tiny", vocab_size=64, num_real_tokens=40)).eval()


def without_cache(model: PureForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Greedy decoding written out: one full forward pass for each new token."""
    for _ in range(GREEDY["max_new_tokens"]):
        with torch.no_grad():
            logits = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        logits[:, model.config.suppressed_tokens] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"num_beams": 1, "prompt_lookup_num_tokens": 3},
        {"assistant_early_exit": 2},
    ],
    ids=["dynamic cache", "no cache", "static cache", "prompt lookup", "early exit"],
)
def test_every_cache_gives_the_same_greedy_tokens(model, ids, how):
    prompt = ids if how.keys().isdisjoint(["prompt_lookup_num_tokens", "assistant_early_exit"]) else ids[:1]
    expected = without_cache(model, prompt)
    assert not (expected[:, 24:] == model.config.eos_token_id).any()
    assert torch.equal(model.generate(prompt, **GREEDY, **how), expected)
    assert model.config.num_hidden_layers == 4


def test_a_model_runs_the_number_of_layers_in_its_configuration(model, ids):
    model.config.num_hidden_layers = 2
    found = model(ids)
    assert len(found.past_key_values) == 2
    model.model.layers = model.model.layers[:2]
    assert torch.equal(found.logits, model(ids).logits)


def test_continuous_batching_gives_the_same_greedy_tokens(model, ids):
    prompts = [ids[0].tolist(), ids[1, :11].tolist()]
    settings = GenerationConfig(**GREEDY, eos_token_id=-1, suppress_tokens=model.config.suppressed_tokens)
    outputs = model.generate_batch(prompts, generation_config=settings, **SMALL_BATCHES)
    generated = [output.generated_tokens for output in outputs.values()]
    expected = [without_cache(model, torch.tensor([prompt]))[0, len(prompt) :].tolist() for prompt in prompts]
    assert sorted(generated) == sorted(expected)


def test_beams_follow_their_cache(model, ids):
    """Beams are reordered at every step, and their cached keys with them."""
    how = {**GREEDY, "num_beams": 3, "max_new_tokens": 6}
    beams = model.generate(ids, **how)
    assert torch.equal(beams, model.generate(ids, **how, use_cache=False))
    assert not torch.equal(beams, without_cache(model, ids)[:, : beams.shape[1]])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_left_padded_prompts_generate_the_same_as_alone(model, ids, implementation):
    model.set_attn_implementation(implementation)
    lengths = (24, 11)
    prompts = [ids[row, :length] for row, length in enumerate(lengths)]
    padded = torch.full((2, 24), model.config.pad_token_id)
    for row, prompt in enumerate(prompts):
        padded[row, 24 - len(prompt) :] = prompt
    together = model.generate(padded, attention_mask=(padded != model.config.pad_token_id).long(), **GREEDY)
    for row, prompt in enumerate(prompts):
        assert torch.equal(together[row, 24:], model.generate(prompt[None], **GREEDY)[0, len(prompt) :])


def test_logits_to_keep_and_a_cached_step_equal_the_full_forward(model, ids):
    with torch.no_grad():
        full = model(ids).logits
        torch.testing.assert_close(model(ids, logits_to_keep=3).logits, full[:, -3:], rtol=0, atol=1e-5)
        picked = torch.tensor([0, 7, 20])
        torch.testing.assert_close(model(ids, logits_to_keep=picked).logits, full[:, picked], rtol=0, atol=1e-5)
        cache = DynamicCache(config=model.config)
        parts = [model(part, past_key_values=cache).logits for part in ids.split([10, 13, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=2e-5)


def test_under_autocast_a_cache_keeps_its_dtype_and_a_cached_step_equals_the_full_forward(model, ids):
    """Rotary embedding leaves keys in float32, and a cache uses the dtype of its first keys also for values."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits[:, -1]
        model(ids[:, :-1], past_key_values=cache)
        step = model(ids[:, -1:], past_key_values=cache).logits[:, -1]
    assert {layer.keys.dtype for layer in cache.layers} | {layer.values.dtype for layer in cache.layers} == {
        torch.bfloat16
    }
    torch.testing.assert_close(step, expected, atol=0.02 * expected.abs().max().item(), rtol=0)


def test_generating_from_embeddings_equals_generating_from_ids(model, ids):
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY), model.generate(ids, **GREEDY)[:, 24:])


def spare_share(model: PureForCausalLM, **kwargs) -> float:
    prompt = torch.randint(2, 40, (64, 4), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    new = model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=True, top_k=0, **kwargs)[:, 4:]
    return ((new >= 40) | (new == model.config.pad_token_id)).float().mean().item()


def test_spare_and_pad_ids_are_never_sampled(spare_model):
    assert spare_share(spare_model) == 0
    # A trainer has its own GenerationConfig; the model's supplies what it does not set.
    assert spare_share(spare_model, generation_config=GenerationConfig(temperature=1.5, top_p=1.0)) == 0
    spare_model.generation_config.suppress_tokens = None
    assert spare_share(spare_model) > 0.3


def test_continuous_batching_with_a_custom_config_draws_no_spare_ids(spare_model):
    with torch.no_grad():
        states = spare_model.model(torch.tensor([[5, 6, 7]])).last_hidden_state[0, -1]
        spare_model.lm_head.weight.zero_()
        spare_model.lm_head.weight[50], spare_model.lm_head.weight[9] = 2 * states, states
    settings = GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=-1)
    (output,) = spare_model.generate_batch([[5, 6, 7]], generation_config=settings, **SMALL_BATCHES).values()
    assert output.generated_tokens[0] == 9
    assert max(output.generated_tokens) < 40
    assert settings.suppress_tokens is None


def test_suppression_survives_saving_loading_and_a_lost_generation_config(spare_model, tmp_path):
    expected = [1, *range(40, 64)]
    assert spare_model.generation_config.suppress_tokens == expected
    spare_model.save_pretrained(tmp_path)
    loaded = PureForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.suppress_tokens == expected
    (tmp_path / "generation_config.json").unlink()
    loaded = PureForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.suppress_tokens == expected
    assert (loaded.generation_config.eos_token_id, loaded.generation_config.pad_token_id) == (0, 1)
    assert spare_share(loaded) == 0


def test_tokens_in_spare_rows_can_be_generated_once_they_are_real(spare_model, tmp_path):
    """Tokens added later take spare rows, by `num_real_tokens` or by `resize_token_embeddings`."""
    spare_model.config.num_real_tokens = 42
    assert spare_model.generation_config.suppress_tokens == [1, *range(42, 64)]
    spare_model.resize_token_embeddings(45, pad_to_multiple_of=64)
    assert (spare_model.config.vocab_size, spare_model.config.num_real_tokens) == (64, 45)
    assert spare_model.generation_config.suppress_tokens == [1, *range(45, 64)]
    spare_model.lm_head.weight.data[44] *= 100  # half of the time this token has by far the largest logit
    prompt = torch.randint(2, 40, (64, 4), generator=torch.Generator().manual_seed(1))
    assert (spare_model.generate(prompt, max_new_tokens=1, do_sample=False)[:, 4:] == 44).any()
    spare_model.save_pretrained(tmp_path)
    loaded = PureForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.suppress_tokens == [1, *range(45, 64)]
    loaded.config.num_real_tokens = None
    assert loaded.generation_config.suppress_tokens == [1]
    loaded.config.pad_token_id, loaded.config.eos_token_id = 0, [0, 5]
    assert loaded.generation_config.suppress_tokens is None


@pytest.mark.parametrize("kind", [PureForCausalLM, PureModel])
@pytest.mark.parametrize(
    ("arguments", "rows", "real"),
    [
        ((30,), 30, None),  # fewer than the real tokens
        ((42,), 42, None),
        ((80,), 80, None),
        ((64,), 64, None),
        ((30, 32), 32, 30),
        ((70, 128), 128, 70),
        ((None, 48), 96, 40),
        ((None, None), 64, 40),
    ],
)
def test_real_tokens_follow_a_resized_vocabulary(tmp_path, kind, arguments, rows, real):
    model = kind(PureConfig.from_preset("tiny", vocab_size=64, num_real_tokens=40))
    assert model.resize_token_embeddings(*arguments).num_embeddings == rows
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    for config in (model.config, loaded.config):
        assert (config.vocab_size, config.num_real_tokens) == (rows, real)
    assert loaded(torch.tensor([[rows - 1]]))[0].shape[:2] == (1, 1)
    if kind is PureForCausalLM:
        assert loaded.lm_head.weight.shape[0] == rows
        for either in (model, loaded):
            assert either.generation_config.suppress_tokens == [1, *range(real or rows, rows)]


@pytest.mark.parametrize(("name", "value"), [("eos_token_id", [0, 45]), ("eos_token_id", 45), ("pad_token_id", 45)])
def test_a_special_token_that_a_tokenizer_put_in_a_spare_row_is_real(spare_model, tmp_path, name, value):
    """Trainer copies the special tokens of the tokenizer when training starts, and saves the model much later."""
    setattr(spare_model.config, name, value)
    spare_model.save_pretrained(tmp_path)
    loaded = PureForCausalLM.from_pretrained(tmp_path)
    for model in (spare_model, loaded):
        assert (model.config.num_real_tokens, getattr(model.config, name)) == (46, value)
        assert model.generation_config.suppress_tokens == [45 if name == "pad_token_id" else 1, *range(46, 64)]
    setattr(loaded.config, name, 63)
    assert loaded.config.real_tokens == 64
    with pytest.raises(Exception, match="63"):
        PureConfig.from_preset("tiny", vocab_size=64, num_real_tokens=40, **{name: 63})


def test_a_vocabulary_that_would_lose_a_special_token_is_not_resized():
    model = PureForCausalLM(PureConfig.from_preset("tiny", vocab_size=64, eos_token_id=[0, 50]))
    with pytest.raises(ValueError, match="eos_token_id .50."):
        model.resize_token_embeddings(50, pad_to_multiple_of=64)
    assert (model.config.vocab_size, model.config.num_real_tokens) == (64, None)
    assert model.resize_token_embeddings(51).num_embeddings == 51


@pytest.mark.parametrize("again", [False, True])
def test_a_token_added_after_training_can_be_generated(tmp_path, again):
    """For example an end-of-turn token, without which no turn would end."""
    torch.manual_seed(0)
    model = PureForCausalLM(PureConfig.from_preset("tiny", vocab_size=448, num_real_tokens=401)).eval()
    model.save_pretrained(tmp_path)
    model = PureForCausalLM.from_pretrained(tmp_path)
    model.resize_token_embeddings(402, pad_to_multiple_of=64)
    prompt = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        model.lm_head.weight[401] = 10 * model.model(prompt).last_hidden_state[0, -1]
    if again:
        model.save_pretrained(tmp_path)
        model = PureForCausalLM.from_pretrained(tmp_path)
    assert model(prompt).logits[0, -1].argmax() == 401
    assert model.generate(prompt, max_new_tokens=1, do_sample=False)[0, -1] == 401
    assert model.config.vocab_size == 448


def test_explicit_suppressed_tokens_are_kept(spare_model, tmp_path):
    spare_model.generation_config.suppress_tokens = [1, 7, *range(40, 64)]
    spare_model.config.num_real_tokens = 42
    assert spare_model.generation_config.suppress_tokens == [1, 7, *range(40, 64)]
    spare_model.save_pretrained(tmp_path)
    loaded = PureForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.suppress_tokens == [1, 7, *range(40, 64)]
    loaded.generation_config.suppress_tokens = None
    loaded.generation_config = loaded.generation_config  # as peft does before it generates
    assert loaded.generation_config.suppress_tokens is None
    loaded.generation_config = GenerationConfig(suppress_tokens=[])
    assert loaded.generation_config.suppress_tokens == []
    loaded.generation_config = GenerationConfig(max_new_tokens=3)
    assert loaded.generation_config.suppress_tokens == [1, *range(42, 64)]


@pytest.mark.parametrize(
    ("changes", "suppressed"),
    [
        ({"num_real_tokens": 60}, [1, *range(60, 64)]),
        ({"num_real_tokens": 30}, [1, *range(30, 64)]),
        ({"num_real_tokens": 56, "eos_token_id": [0, 55]}, [1, *range(56, 64)]),
        ({"num_real_tokens": 64}, [1]),
    ],
)
@pytest.mark.parametrize("edited", [False, True])
def test_suppressed_tokens_follow_a_vocabulary_that_changes_on_loading(
    spare_model, tmp_path, changes, suppressed, edited
):
    spare_model.save_pretrained(tmp_path)
    if edited:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
    loaded = PureForCausalLM.from_pretrained(tmp_path, **({} if edited else changes))
    assert loaded.generation_config.suppress_tokens == suppressed


def test_a_vocabulary_without_spare_rows_suppresses_nothing():
    config = PureConfig.from_preset("tiny", vocab_size=64, pad_token_id=0)
    assert PureForCausalLM(config).generation_config.suppress_tokens is None


def test_text_generation_pipeline(model, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0, "<pad>": 1, **{f"w{number}": number for number in range(2, 2048)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>").save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    generator = pipeline("text-generation", model=str(tmp_path), device="cpu")
    text = generator("w5 w6 w7", return_full_text=False, **GREEDY)[0]["generated_text"]
    expected = model.generate(torch.tensor([[5, 6, 7]]), **GREEDY)[0, 3:]
    assert text.split() == AutoTokenizer.from_pretrained(tmp_path).decode(expected).split()
    assert len(text.split()) == GREEDY["max_new_tokens"]
