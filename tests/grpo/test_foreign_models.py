"""Other causal language models are trained, with their own tokenizer and no spare id for padding."""

import pytest
from transformers import PreTrainedTokenizerFast

from modeling_pure.tokenizer import load_tokenizer
from tests.grpo.conftest import make_model


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_model_of_another_family_is_trained(family, make_trainer, tokenizer, tmp_path):
    model = make_model(family)
    for dropout in (name for name in vars(model.config) if name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")):
        setattr(model.config, dropout, 0.1)  # GPT-2's own, which must be off
    model.save_pretrained(tmp_path / family)
    tokenizer.save_pretrained(tmp_path / family)
    trainer = make_trainer(str(tmp_path / family), max_steps=2, save_strategy="no")
    assert trainer.prefix_obstacle is None
    assert trainer.rollout_obstacle is None
    trainer.train()
    steps = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert steps[0]["sampling/log_prob_difference"] < 1e-5
    assert len(steps) == 2
    assert min(line["grad_norm"] for line in steps) > 1e-3


def test_the_end_of_text_token_pads_if_there_is_no_spare_id(tokenizer_folder):
    padless = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    assert padless.pad_token is None
    assert load_tokenizer("key", str(tokenizer_folder), vocab_size=len(padless)).pad_token == padless.eos_token
    assert load_tokenizer("key", str(tokenizer_folder), vocab_size=len(padless) + 1).pad_token == "<|pad|>"
