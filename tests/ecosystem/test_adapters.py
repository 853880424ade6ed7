"""An adapter trained on Pure is one of its Llama too; merged and exported it computes what it did as an adapter."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.ecosystem.conftest import EXPORT, export_here


def test_an_adapter_is_served_with_the_llama_and_merges_into_it(work, gpt2, tmp_path):
    base, llama = (AutoModelForCausalLM.from_pretrained(work / "runs" / name) for name in ("grpo", "llama"))
    ids = torch.randint(0, 50000, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        untrained = base.eval()(ids).logits
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        adapted.train()(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        trained = adapted.eval()(ids).logits
        assert (trained - untrained).abs().max() > 0.1
        served = PeftModel.from_pretrained(llama, tmp_path / "adapter").eval()
        assert torch.equal(served(ids).logits, trained)

        adapted.merge_and_unload().save_pretrained(tmp_path / "runs" / "grpo")
        gpt2.save_pretrained(tmp_path / "runs" / "grpo")
        export_here(EXPORT, tmp_path)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "llama").eval()
        # Adding the adapter to the weights rounds otherwise than adding its output.
        torch.testing.assert_close(merged(ids).logits, trained, rtol=0, atol=1e-3)
