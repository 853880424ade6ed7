"""Where a completion ends: one definition for GRPO, cross entropy, evaluation, and the saved `generation_config`."""

from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def end_ids(
    config: PreTrainedConfig | None, generation_config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Sorted ids of the tokens that end a completion: the tokenizer's, and all that the model's two files name.

    An instruct model also ends turns, and either of its files may know of that alone.
    """
    ends = {tokenizer.eos_token_id}
    for named in (getattr(config, "eos_token_id", None), getattr(generation_config, "eos_token_id", None)):
        ends |= {*named} if isinstance(named, list) else {named}
    return sorted(ends - {None})


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`end_ids` of a model."""
    return end_ids(model.config.get_text_config(), getattr(model, "generation_config", None), tokenizer)


def set_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`end_tokens`, which the model's own `generate` then also ends at, once it is saved and loaded too."""
    ends = end_tokens(model, tokenizer)
    generation: Any = model.generation_config  # never None: the model can generate
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    return ends
