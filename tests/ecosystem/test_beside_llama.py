"""What people do with a causal language model, each beside a Llama of the same weights: it gives the same.

The fast tests hold what once differed; this module goes through the rest. Exports (tests/test_export.py), quantisers
(test_quantised.py) and tensor parallelism (tests/model/test_tensor_parallel.py) have tests of their own.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MaxTimeCriteria,
    PreTrainedModel,
    StaticCache,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    Trainer,
    TrainingArguments,
)
from transformers.generation.streamers import BaseStreamer
from trl import SFTConfig, SFTTrainer

from modeling_pure import PureForCausalLM
from tests.model.test_generation import SMALL_BATCHES
from tests.model.twins import make_pair

pytestmark = pytest.mark.slow

Twins = tuple[PureForCausalLM, LlamaForCausalLM]
NEW = {"max_new_tokens": 12, "do_sample": False}
PAD = 1


@pytest.fixture(params=["sdpa", "eager"])
def twins(request) -> Twins:
    pure, llama = make_pair(request.param)
    pure.generation_config.suppress_tokens = None  # Pure never generates padding
    return pure.eval(), llama.eval()


@pytest.fixture
def pair() -> Twins:
    """As `twins`, with the default attention only."""
    pure, llama = make_pair("sdpa")
    pure.generation_config.suppress_tokens = None
    return pure.eval(), llama.eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 400, (2, 24), generator=torch.Generator().manual_seed(1))


def padded(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The second prompt is shorter: its beginning is padding."""
    ids, mask = ids.clone(), torch.ones_like(ids)
    ids[1, :9], mask[1, :9] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal to the last bit, whatever they hold."""
    if isinstance(ours, torch.Tensor):
        assert ours.shape == theirs.shape
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_same(ours[name], theirs[name])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)
    elif isinstance(ours, DynamicCache):
        assert_same([(one.keys, one.values) for one in ours.layers], [(one.keys, one.values) for one in theirs.layers])
    else:
        assert ours == theirs


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
        assistant.lm_head.weight.data[::3] *= 0.5  # right now and then
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


# ---- forward and backward -------------------------------------------------------------------------------------------


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


TRAIN: dict[str, dict[str, Any]] = {
    "plain": {},
    "items in the batch": {"num_items_in_batch": 57},
    "ignored index": {"ignore_index": 7},
    "shifted labels": {"shift_labels": True},
    "padded": {"padded": True},
    "checkpointing": {"checkpointing": {"use_reentrant": False}},
    "reentrant checkpointing": {"checkpointing": {"use_reentrant": True}},
    "frozen embeddings": {"frozen": True},
    "autocast": {"autocast": True},
}


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("name", TRAIN)
def test_training(pair, ids, name, skip_logits):
    """To the bit with logits, as any other model is called; to rounding without."""
    losses, gradients = [], []
    for model in pair:
        how = dict(TRAIN[name])
        inputs = padded(ids) if how.pop("padded", False) else {"input_ids": ids}
        if checkpointing := how.pop("checkpointing", None):
            model.gradient_checkpointing_enable(checkpointing)
        model.get_input_embeddings().requires_grad_(not how.pop("frozen", False))
        if "shift_labels" in how:
            how["shift_labels"] = ids.roll(-2, 1)
        if model is pair[0] and skip_logits:
            how["skip_logits"] = True
        with torch.autocast("cpu", torch.bfloat16, enabled=how.pop("autocast", False)):
            losses.append(model.train()(**inputs, labels=ids, **how).loss)
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "norm" not in name})
        if model.get_input_embeddings().weight.grad is not None:
            model.get_input_embeddings().weight.grad[PAD] = 0  # Llama's pad embedding never learns
    exact = not skip_logits and name != "autocast"  # under it Pure keeps its residual stream in bfloat16
    near = {"rtol": 1e-6, "atol": 0.0} if name != "autocast" else {"rtol": 1e-2, "atol": 0.0}
    torch.testing.assert_close(*losses, **({"rtol": 0.0, "atol": 0.0} if exact else near))
    for name_, expected in gradients[1].items():
        found = gradients[0][name_]
        assert (found is None) == (expected is None)
        if exact and found is not None:
            assert torch.equal(found, expected), name_
        elif found is not None:
            assert (found - expected).norm() <= (0.1 if name == "autocast" else 1e-5) * expected.norm(), name_


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


# ---- adapters -------------------------------------------------------------------------------------------------------

ALL = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
SQUARE = {"target_modules": ["q_proj", "o_proj"]}
MERGED = {
    "LoRA": lambda: peft.LoraConfig(r=4, **ALL),
    "LoRA on the head": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
    "LoRA of all linear layers": lambda: peft.LoraConfig(r=4, target_modules="all-linear"),
    "LoRA and saved modules": lambda: peft.LoraConfig(r=4, **SQUARE, modules_to_save=["lm_head", "embed_tokens"]),
    "LoRA of embeddings": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens", "v_proj"]),
    "LoRA and new tokens": lambda: peft.LoraConfig(r=4, **SQUARE, trainable_token_indices=[5, 9]),
    "rsLoRA": lambda: peft.LoraConfig(r=4, use_rslora=True, **ALL),
    "DoRA": lambda: peft.LoraConfig(r=4, use_dora=True, **ALL),
    "PiSSA": lambda: peft.LoraConfig(r=4, init_lora_weights="pissa", **ALL),
    "OLoRA": lambda: peft.LoraConfig(r=4, init_lora_weights="olora", **ALL),
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **ALL),
    "LoHa": lambda: peft.LoHaConfig(r=4, alpha=4, **ALL),
    "LoKr": lambda: peft.LoKrConfig(r=4, alpha=4, **ALL),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=8, **SQUARE),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=8, **SQUARE),
    "VeRA": lambda: peft.VeraConfig(r=8, **SQUARE),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=20, **ALL),
    "HRA": lambda: peft.HRAConfig(r=4, **SQUARE),
    "MiSS": lambda: peft.MissConfig(r=4, **SQUARE),
    "SHiRA": lambda: peft.ShiraConfig(r=4, **ALL),
    "RoAd": lambda: peft.RoadConfig(group_size=8, **SQUARE),
    "VB-LoRA": lambda: peft.VBLoRAConfig(r=4, num_vectors=16, vector_length=8, **SQUARE),
    "RandLoRA": lambda: peft.RandLoraConfig(r=4, **SQUARE),
    "trainable tokens": lambda: peft.TrainableTokensConfig(
        target_modules=["embed_tokens"], token_indices=[*range(2, 200)]
    ),
}
PROMPTED = {
    "prompt tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=32),
    "prefix tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


def train_adapter(base: PreTrainedModel, config: peft.PeftConfig, ids: torch.Tensor, folder: Path) -> tuple[Any, ...]:
    """Losses of three steps, and the logits of the trained, the reloaded and, if there is one, the merged model."""
    base.save_pretrained(folder / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(base, config).train()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = adapted(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    adapted.save_pretrained(folder / "adapter")
    with torch.no_grad():
        logits = [adapted.eval()(input_ids=ids).logits]
        again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "adapter")
        logits.append(again.eval()(input_ids=ids).logits)
        if not isinstance(config, peft.PromptLearningConfig):
            again.merge_and_unload().save_pretrained(folder / "merged")
            logits.append(AutoModelForCausalLM.from_pretrained(folder / "merged").eval()(ids).logits)
    return losses, logits


@pytest.mark.parametrize("name", [*MERGED, *PROMPTED])
def test_adapters(pair, ids, tmp_path, name):
    config = (MERGED | PROMPTED)[name]
    found = [train_adapter(model, config(), ids, tmp_path / str(number)) for number, model in enumerate(pair)]
    (losses, (trained, *others)), expected = found
    assert losses[0] != losses[-1]
    assert_same(losses, expected[0])
    assert_same([trained, *others], expected[1])
    for logits in others:
        torch.testing.assert_close(logits, trained, rtol=0, atol=1e-3 * trained.abs().max().item())


# ---- trainers -------------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "noisy embeddings": {"neftune_noise_alpha": 5.0},
    "sgd": {"optim": "sgd", "learning_rate": 0.1},
    "adafactor": {"optim": "adafactor"},
    "clipping": {"max_grad_norm": 0.1, "weight_decay": 0.1},
}


def freeze_norms(model: PreTrainedModel) -> None:
    """Llama's norm weights stay one: Pure has none."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" not in name)


def rows(number: int) -> list[dict[str, Any]]:
    ids = torch.randint(2, 400, (number, 16), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": row, "labels": row} for row in ids]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_stock_trainer(pair, tmp_path, name):
    logs, predictions = [], []
    for number, model in enumerate(pair):
        arguments = TrainingArguments(
            str(tmp_path / str(number)),
            **{"max_steps": 4, "logging_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no"},
            **ARGUMENTS[name],
        )
        freeze_norms(model)
        trainer = Trainer(model, arguments, train_dataset=rows(16), eval_dataset=rows(4))
        trainer.train()
        trainer.evaluate()
        predictions.append(trainer.predict(rows(3)).predictions)
        logs.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
        logs[-1].append(trainer.state.log_history[-1]["eval_loss"])
    assert logs[0][0] > logs[0][3]
    assert logs[0] == logs[1]
    assert (predictions[0] == predictions[1]).all()


@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 32}, {"loss_type": "dft"}], ids=str)
def test_the_supervised_trainer_of_trl(pair, tmp_path, tokenizer, questions, options):
    """It reads logits in training: entropy and the accuracy of tokens."""
    data = Dataset.from_list([{"text": question.question} for question in questions[:16]])
    logs = []
    for number, model in enumerate(pair):
        arguments = SFTConfig(
            str(tmp_path / str(number)),
            **{"max_steps": 3, "logging_steps": 1, "use_cpu": True, "bf16": False, "save_strategy": "no"},
            **{"gradient_checkpointing": False, "report_to": "none"},
            **options,
        )
        freeze_norms(model)
        trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
        trainer.train()
        names = ("loss", "entropy", "mean_token_accuracy")
        logs.append(
            [[log[name] for name in names if name in log] for log in trainer.state.log_history if "loss" in log]
        )
    assert len(logs[0]) == 3
    assert logs[0] == logs[1]


def test_distillation_reads_logits_beside_the_loss(pair, ids):
    """Students learn from a teacher's logits and from labels in one call, as everybody writes it."""
    target = torch.randn(2, 24, 512).softmax(-1)
    for student in pair:
        outputs = student.train()(ids, labels=ids)
        distance = torch.nn.functional.kl_div(outputs.logits.log_softmax(-1), target, reduction="batchmean")
        (outputs.loss + distance).backward()
    expected = {name: p.grad for name, p in pair[1].named_parameters()}
    assert all(torch.equal(p.grad, expected[name]) for name, p in pair[0].named_parameters())


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
