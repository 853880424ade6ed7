"""Eight and four bits by torchao and bitsandbytes: Pure and its Llama lose the same, and come back from a folder."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from modeling_pure import PureConfig, PureForCausalLM
from tests.ecosystem.conftest import EXPORT, SHAPE, export_here, needs_runtimes, python_block

pytestmark = needs_runtimes


def with_torchao(folder: Path):
    names: dict = {}
    exec(python_block("from torchao.quantization").replace("runs/grpo", str(folder)), names)
    return names["model"].eval()


def with_eight_bits(folder: Path):
    names: dict = {}
    block = python_block("from transformers import AutoModelForCausalLM, BitsAndBytesConfig")
    exec(block.replace("runs/grpo", str(folder)), names)
    return names["model"].eval()


def with_four_bits(folder: Path):
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, device_map="cpu").eval()


@pytest.fixture
def rows_of_64(tmp_path) -> Path:
    """As `work`, with rows that are multiples of 64: bitsandbytes' four bits need them on some CPUs."""
    torch.manual_seed(0)
    shape = SHAPE | {"hidden_size": 256, "intermediate_size": 704, "num_key_value_heads": 1, "vocab_size": 512}
    ids = {"num_real_tokens": None, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = PureConfig(**shape, **ids, initializer_range=0.08, head_initializer_range=0.08)
    PureForCausalLM(config).save_pretrained(tmp_path / "runs" / "grpo")
    export_here(EXPORT, tmp_path)
    return tmp_path


# Mean KL from the full model: measured 0.002, 0.005 and 0.3 nats on weights like these, which are random and large.
@pytest.mark.parametrize(
    ("load", "most"),
    [
        pytest.param(with_torchao, 0.01, id="torchao"),
        pytest.param(with_eight_bits, 0.02, id="eight bits"),
        pytest.param(with_four_bits, 0.6, id="four bits"),
    ],
)
@torch.no_grad()
def test_quantised_models_stay_near_and_reload(rows_of_64, tmp_path, load, most):
    ids = torch.randint(2, 512, (2, 32), generator=torch.Generator().manual_seed(1))
    full = AutoModelForCausalLM.from_pretrained(rows_of_64 / "runs" / "grpo").eval()(ids).logits
    ours, theirs = (load(rows_of_64 / "runs" / name) for name in ("grpo", "llama"))
    ours.save_pretrained(tmp_path / "saved")  # before it computes: afterwards bitsandbytes' four bits are spoilt by it
    logits = ours(ids).logits
    assert torch.equal(logits, theirs(ids).logits)
    lost = kl_div(logits.float().log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert 0 < lost.mean() < most
    assert type(ours.lm_head.weight) is torch.nn.Parameter
    assert type(ours.lm_head) is torch.nn.Linear
    assert ours.generate(ids[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (1, 36)
    sizes = [
        (folder / "model.safetensors").stat().st_size for folder in (tmp_path / "saved", rows_of_64 / "runs/grpo")
    ]
    assert sizes[0] < sizes[1] / 2
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()(ids).logits, logits)


@torch.no_grad()
@pytest.mark.parametrize("load", [with_torchao, with_eight_bits], ids=["torchao", "eight bits"])
def test_eight_bits_fit_the_real_heads(work, pure, load):
    ids = torch.randint(0, 50000, (2, 32), generator=torch.Generator().manual_seed(1))
    agree = load(work / "runs" / "grpo")(ids).logits.argmax(-1) == pure(ids).logits.argmax(-1)
    assert agree.float().mean() > 0.6


@torch.no_grad()
def test_four_bits_do_not_fit_the_real_rows_on_some_cpus(work):
    """Once this fails, the document can leave that out."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no bf16 instructions of AVX-512")
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        with_four_bits(work / "runs" / "grpo")(torch.ones(1, 4, dtype=torch.long))
