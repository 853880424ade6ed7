"""Common ways to train a causal language model match a Llama with the same weights."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from tests.model.twins import PAD, assert_same, padded

pytestmark = pytest.mark.slow


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 400, (2, 24), generator=torch.Generator().manual_seed(1))


# ---- gradients ------------------------------------------------------------------------------------------------------

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
    """Bit-exact with logits, as other models are called; up to rounding without."""
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


def test_distillation_reads_logits_and_loss(pair, ids):
    """The student learns from a teacher's logits and from labels in one call, as is usual."""
    target = torch.randn(2, 24, 512).softmax(-1)
    for student in pair:
        outputs = student.train()(ids, labels=ids)
        distance = torch.nn.functional.kl_div(outputs.logits.log_softmax(-1), target, reduction="batchmean")
        (outputs.loss + distance).backward()
    expected = {name: p.grad for name, p in pair[1].named_parameters()}
    assert all(torch.equal(p.grad, expected[name]) for name, p in pair[0].named_parameters())
