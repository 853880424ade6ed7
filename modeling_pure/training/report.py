"""Arithmetic that people read at the start of a run: memory and FLOPs."""

from transformers import PreTrainedModel, TrainingArguments

from ..configuration_pure import PureConfig
from ..loss_pure import CHUNK_TOKENS


def state_memory(parameters: int) -> str:
    """Memory that training state takes on each device: fp32 weights, gradients and Adam's two moments, 16 B each."""
    return f"{16 * parameters / 1e9:.2f} GB for weights, gradients and Adam (fp32); activations come on top"


def training_bytes(config: PureConfig, parameters: int, args: TrainingArguments, length: int) -> dict[str, int]:
    """What a pass of compiled layers takes on each device, in bytes, by arithmetic.

    Saved for the backward pass are, for each token and layer, the inputs of both norms and what these give, queries,
    keys, values and their mixture, and three of the width of the MLP, with `qk_norm` queries and keys twice; with
    checkpointing, a layer's input alone, and the rest of one layer at a time. The loss holds a chunk of logits, twice
    in their dtype and twice in float32.
    """
    tokens = args.per_device_train_batch_size * length
    width = 2 if args.bf16 else 4
    keys = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    normed = config.hidden_size + keys if config.qk_norm else 0
    of_layer = width * tokens * (6 * config.hidden_size + 2 * keys + normed + 3 * config.intermediate_size)
    activations = config.num_hidden_layers * of_layer
    if args.gradient_checkpointing:
        activations = config.num_hidden_layers * width * tokens * config.hidden_size + of_layer
    loss = min(tokens, CHUNK_TOKENS) * config.vocab_size * (2 * width + 8)
    return {"weights, gradients, optimizer": 16 * parameters, "activations": activations, "loss": loss}


def training_memory(config: PureConfig, parameters: int, args: TrainingArguments, length: int) -> str:
    """`training_bytes` in words."""
    parts = training_bytes(config, parameters, args, length)
    total = sum(parts.values()) / 1e9
    return f"about {total:.1f} GB: " + ", ".join(f"{size / 1e9:.1f} {part}" for part, size in parts.items())


def training_flops(parameters: int, embedding_parameters: int, layers: int, hidden: int, length: int) -> int:
    """FLOPs of training on one token: 6 x matmul parameters + 12 x layers x hidden x length.

    The convention of PaLM (Chowdhery et al. 2022, appendix B), without the input embedding, which is a lookup.
    """
    return 6 * (parameters - embedding_parameters) + 12 * layers * hidden * length


def model_flops(model: PreTrainedModel, length: int) -> int:
    """`training_flops` of a model on rows of `length` tokens."""
    config = model.config
    embedding = config.vocab_size * config.hidden_size
    return training_flops(model.num_parameters(), embedding, config.num_hidden_layers, config.hidden_size, length)
