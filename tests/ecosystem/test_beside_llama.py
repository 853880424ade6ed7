"""Common uses of a causal language model match a Llama with the same weights.

The fast tests hold what once differed; this module goes through the rest, and test_training_beside_llama.py through
training. Exports (tests/test_export.py), quantisers (test_quantised.py) and tensor parallelism
(tests/model/test_tensor_parallel.py) have tests of their own.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    MaxTimeCriteria,
    PreTrainedModel,
    StaticCache,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from tests.model.twins import SMALL_BATCHES, Twins, assert_same, make_pair, padded

pytestmark = pytest.mark.slow

NEW = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(params=["sdpa", "eager"])
def twins(request) -> Twins:
    pure, llama = make_pair(request.param)
    pure.generation_config.suppress_tokens = None  # Pure never generates padding
    return pure.eval(), llama.eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 400, (2, 24), generator=torch.Generator().manual_seed(1))


# ---- generate -------------------------------------------------------------------------------------------------------

GENERATE: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "dynamic cache by name": {"cache_implementation": "dynamic"},
    "sampling": {"do_sample": True},
    "top-k, top-p, min-p": {"do_sample": True, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "temperature": 0.7},
    "typical": {"do_sample": True, "typical_p": 0.5},
    "epsilon and eta": {"do_sample": True, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3},
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 4},
    "beams without cache": {"num_beams": 3, "use_cache": False},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "beams to choose from": {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.5, "early_stopping": True},
    "repetition penalty": {"repetition_penalty": 1.3},
    "no repeated pairs": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[5], [7, 8]]},
    "sequence bias": {"sequence_bias": [[[9], 10.0]]},
    "suppressed tokens": {"suppress_tokens": [3, 4, *range(100, 200)]},
    "suppressed at the beginning": {"begin_suppress_tokens": [*range(2, 300)]},
    "forced end": {"forced_eos_token_id": 0},
    "exponential length": {"exponential_decay_length_penalty": (3, 2.0)},
    "at least": {"min_new_tokens": 12, "eos_token_id": [0, *range(100, 300)]},
    "several ends": {"eos_token_id": [*range(100, 300)]},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.5, "bias": 4.0}},
    "guidance": {"guidance_scale": 1.5},
    "chunked prefill": {"prefill_chunk_size": 7},
    "renormalised": {"do_sample": True, "renormalize_logits": True, "top_k": 5},
    "a processor": {"logits_processor": LogitsProcessorList([TemperatureLogitsWarper(0.5)]), "do_sample": True},
    "a criterion": {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(1000.0)])},
    "scores": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "states": {"return_dict_in_generate": True, "output_hidden_states": True},
}
ONE_PROMPT: dict[str, dict[str, Any]] = {
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
}


@pytest.mark.parametrize("left_padded", [False, True])
@pytest.mark.parametrize("name", GENERATE)
def test_generate(twins, ids, name, left_padded):
    prompts = padded(ids) if left_padded else {"input_ids": ids}
    found = []
    for model in twins:
        torch.manual_seed(0)
        found.append(model.generate(**prompts, **NEW | copy.deepcopy(GENERATE[name])))
    assert_same(*found)


@pytest.mark.parametrize("name", ONE_PROMPT)
def test_generate_from_one_prompt(twins, ids, name):
    ids = torch.cat([ids[:1], ids[:1, :8]], dim=1)
    assert_same(*(model.generate(ids, **NEW, **ONE_PROMPT[name]) for model in twins))
    assert_same(*(model.generate(ids, **NEW) for model in twins))  # and it leaves nothing behind
    assert twins[0].config.num_hidden_layers == 3


@pytest.mark.parametrize("do_sample", [False, True])
def test_assisted_by_another_model(pair, ids, do_sample):
    found = []
    for model, assistant in zip(pair, make_pair("sdpa"), strict=True):
        assistant.lm_head.weight.data[::3] *= 0.5  # sometimes right
        torch.manual_seed(0)
        how = {"do_sample": do_sample, "max_new_tokens": 12}
        found.append(model.generate(ids[:1], assistant_model=assistant.eval(), **how))
    assert_same(*found)


def test_streamers(pair, ids):
    class Collect(BaseStreamer):
        def __init__(self):
            self.got = []

        def put(self, value):
            self.got += value.flatten().tolist()

        def end(self):
            self.got.append("end")

    streamers = [Collect(), Collect()]
    for model, streamer in zip(pair, streamers, strict=True):
        model.generate(ids[:1], streamer=streamer, **NEW)
    assert streamers[0].got == streamers[1].got
    assert len(streamers[0].got) > 24


def test_stop_strings(pair, ids, tokenizer):
    first = pair[1].generate(ids[:1], **NEW)[0, 24:]
    stop = tokenizer.decode(first[first < len(tokenizer)][:2])
    found = [model.generate(ids[:1], stop_strings=[stop], tokenizer=tokenizer, **NEW) for model in pair]
    assert_same(*found)


def test_a_cache_is_continued_and_cropped(twins, ids):
    found = []
    for model in twins:
        cache = DynamicCache(config=model.config)
        first = model.generate(ids, past_key_values=cache, **NEW)
        more = model.generate(torch.cat([first, ids[:, :3]], dim=1), past_key_values=cache, **NEW)
        cache.crop(20 - cache.get_seq_length())
        found.append((first, more, model.generate(ids, past_key_values=cache, **NEW)))
    assert_same(*found)


def test_continuous_batching(pair, ids):
    settings = GenerationConfig(**NEW, eos_token_id=-1, suppress_tokens=[])
    found = []
    for model in pair:
        outputs = model.generate_batch([ids[0].tolist(), ids[1, :7].tolist()], settings, **SMALL_BATCHES)
        found.append(sorted(output.generated_tokens for output in outputs.values()))
    assert found[0] == found[1]


# ---- forward -------------------------------------------------------------------------------------------------------


def causal_4d(ids: torch.Tensor) -> torch.Tensor:
    return torch.full((len(ids), 1, 24, 24), torch.finfo(torch.float32).min).triu(1)


FORWARD: dict[str, Callable[[PreTrainedModel, torch.Tensor], dict[str, Any]]] = {
    "plain": lambda model, ids: {"input_ids": ids},
    "left padded": lambda model, ids: padded(ids),
    "right padded": lambda model, ids: {name: value.flip(1) for name, value in padded(ids).items()},
    "own mask": lambda model, ids: {"input_ids": ids, "attention_mask": causal_4d(ids)},
    "embeddings": lambda model, ids: {"inputs_embeds": model.get_input_embeddings()(ids)},
    "positions": lambda model, ids: {"input_ids": ids, "position_ids": torch.arange(3, 27)[None]},
    "last logits": lambda model, ids: {"input_ids": ids, "logits_to_keep": 2},
    "picked logits": lambda model, ids: {"input_ids": ids, "logits_to_keep": torch.tensor([0, 7])},
    "everything": lambda model, ids: {"input_ids": ids, "output_hidden_states": True},
    "a tuple": lambda model, ids: {"input_ids": ids, "return_dict": False},
    "dynamic cache": lambda model, ids: {"input_ids": ids, "past_key_values": DynamicCache(config=model.config)},
    "no cache": lambda model, ids: {"input_ids": ids, "use_cache": False},
}


@torch.no_grad()
@pytest.mark.parametrize("name", FORWARD)
def test_forward(twins, ids, name):
    outputs = [model(**FORWARD[name](model, ids)) for model in twins]
    assert_same(*(output if isinstance(output, tuple) else output.to_tuple() for output in outputs))


@torch.no_grad()
def test_a_static_cache_is_filled_in_parts(pair, ids):
    found = []
    for model in pair:
        cache = StaticCache(config=model.config, max_cache_len=32)
        found.append([model(part, past_key_values=cache).logits for part in ids.split([10, 13, 1], dim=1)])
    assert_same(*found)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(ids, dtype):
    ours, theirs = (model.eval()(ids).logits for model in make_pair("sdpa", dtype))
    if dtype == torch.float64:  # Llama's norms are float32 there too
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    else:
        assert_same(ours, theirs)


# ---- loading and saving ---------------------------------------------------------------------------------------------

LOAD: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "by name": {"dtype": "float16"},
    "on a device": {"device_map": "cpu"},
    "planned": {"device_map": "auto", "max_memory": {"cpu": 5_000_000}},
    "on the disk": {"device_map": {"model": "cpu", "lm_head": "disk"}},
    "layers on the disk": {
        "device_map": {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        | {f"model.layers.{layer}": "disk" for layer in range(3)}
    },
}


@torch.no_grad()
@pytest.mark.parametrize("shard", ["1MB", "5GB"])
@pytest.mark.parametrize("name", LOAD)
def test_loading(pair, ids, tmp_path, name, shard):
    found = []
    for number, model in enumerate(pair):
        model.save_pretrained(tmp_path / str(number), max_shard_size=shard)
        offload = {"offload_folder": tmp_path / f"disk{number}"} if "device_map" in LOAD[name] else {}
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(number), **LOAD[name], **offload).eval()
        found.append((loaded(ids).logits, loaded.generate(ids, **NEW, suppress_tokens=[])))
    assert_same(*found)


@torch.no_grad()
@pytest.mark.parametrize("rows", [(530,), (530, 64), (450,), (450, 64), (None, 128)])
def test_resizing(pair, ids, tmp_path, rows):
    """New rows are drawn, and shrinking keeps the others."""
    found = []
    for number, model in enumerate(pair):
        torch.manual_seed(0)
        model.resize_token_embeddings(*rows)
        model.save_pretrained(tmp_path / str(number))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(number)).eval()
        found.append((model(ids).logits, loaded(ids).logits))
    assert_same(*found)


# ---- other attention ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_change_of_the_attention_implementation(pair, ids):
    found = []
    for model in pair:
        model.set_attn_implementation("eager")
        eager = model(ids, output_attentions=True)
        model.set_attn_implementation("sdpa")
        found.append((eager.logits, eager.attentions, model(ids).logits))
    assert_same(*found)
