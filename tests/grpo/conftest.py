"""Small causal language models of several families, batches in TRL's layout, and a GRPO trainer."""

from dataclasses import dataclass

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from modeling_pure import PureConfig
from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.grpo.prompts import prompt_dataset
from modeling_pure.grpo.sampling import pack_bits
from modeling_pure.grpo.trainer import PureGRPOTrainer
from modeling_pure.medqa.rewards import LengthPenalty

SHAPE = {
    "vocab_size": 411,  # not a multiple of 8, and more than the 401 tokens of the test tokenizer
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 400,
}
GPT2_SHAPE = {"vocab_size": 411, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
PURE = {**SHAPE, "head_initializer_range": 0.2, "head_dim": 8, "num_real_tokens": 401}
FAMILIES = {
    "pure": lambda: PureConfig(**PURE),
    "pure with qk_norm": lambda: PureConfig(**PURE, qk_norm=True),
    "llama": lambda: LlamaConfig(**SHAPE),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "gpt_neox": lambda: GPTNeoXConfig(**{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}),
    "gpt2": lambda: GPT2Config(**GPT2_SHAPE, **NO_DROPOUT, bos_token_id=0, eos_token_id=0),
}


def make_model(family: str, attention: str = "sdpa") -> PreTrainedModel:
    """A model with large random weights, in training mode."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation=attention).train()


def make_windowed_model() -> PreTrainedModel:
    """A model with an attention window of 6 tokens."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        MistralConfig(**SHAPE, sliding_window=6), attn_implementation="sdpa"
    ).train()


@dataclass
class Batch:
    """Completions in TRL's layout: prompts padded on the left, completions on the right."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    keep: torch.Tensor
    split: int

    @property
    def rows(self) -> list[tuple[list[int], list[int]]]:
        """Prompt and completion of each row, without padding."""
        return [
            tuple(ids[part][mask[part].bool()].tolist() for part in (slice(self.split), slice(self.split, None)))
            for ids, mask in zip(self.input_ids, self.attention_mask, strict=True)
        ]

    @property
    def packed(self) -> torch.Tensor:
        return pack_bits(self.keep)


def make_batch(groups: list[tuple[int, list[int]]], vocab: int = 411, kept: float = 0.4, seed: int = 0) -> Batch:
    """A batch of `(prompt length, lengths of its completions)`; each token is in its own random keep set."""
    generator = torch.Generator().manual_seed(seed)
    split = max(length for length, _ in groups)
    rows = [(number, length) for number, (_, lengths) in enumerate(groups) for length in lengths]
    longest = max(length for _, length in rows)
    prompts = [torch.randint(1, vocab, (length,), generator=generator) for length, _ in groups]
    ids, mask = (torch.zeros(len(rows), split + longest, dtype=torch.long) for _ in range(2))
    for row, (number, length) in enumerate(rows):
        prompt = prompts[number]
        ids[row, split - len(prompt) : split], mask[row, split - len(prompt) : split] = prompt, 1
        ids[row, split : split + length] = torch.randint(1, vocab, (length,), generator=generator)
        mask[row, split : split + length] = 1
    keep = torch.rand(len(rows), longest, vocab, generator=generator) < kept
    return Batch(ids, mask, keep.scatter(2, ids[:, split:, None], True), split)


UNEVEN = [(11, [6, 2, 4]), (5, [1]), (8, [3, 3, 5, 1])]


def spread(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """A reward that varies between random completions, which are hardly ever right."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer):
    """A Pure model with large random weights and the test tokenizer."""
    folder = tmp_path_factory.mktemp("grpo_model")
    make_model("pure").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_trainer(tmp_path, model_folder, tokenizer, questions):
    """A trainer with 2 prompts x 4 completions per step and two updates per rollout; keywords change its arguments."""

    def make_trainer(
        model=None,
        peft_config=None,
        trainer_class=PureGRPOTrainer,
        callbacks=None,
        chat_tokenizer=None,
        rewards=None,
        rows=None,
        **changes,
    ):
        settings = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "steps_per_generation": 4,
            "max_completion_length": 7,
            "max_steps": 4,
            "save_steps": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "eval_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        args = PureGRPOConfig(**{**settings, **changes})
        more = {"questions": questions[:9]} if issubclass(trainer_class, PureGRPOTrainer) else {}
        return trainer_class(
            model=str(model_folder) if model is None else model,
            reward_funcs=rewards or [spread, LengthPenalty(4, tokenizer, [tokenizer.eos_token_id])],
            args=args,
            train_dataset=rows or prompt_dataset(questions, 60, seed=0),
            eval_dataset=prompt_dataset(questions[:9], 9, seed=0),
            processing_class=chat_tokenizer or tokenizer,
            peft_config=peft_config,
            callbacks=callbacks,
            **more,
        )

    return make_trainer
