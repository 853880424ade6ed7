"""Memory of training: what decoder layers keep for the backward pass, and the peak of the loss, beside HF Llama's.

    python -m benchmarks.memory

Both are what pretraining does: bf16 autocast over float32 weights, at the widths of the full model. Activations are
counted tensor by tensor where autograd saves them: each storage once, weights and their bf16 copies left out. What one
layer keeps of one token is the difference between two depths, so that embedding, rotary table and head drop out. The
peak of the loss runs from hidden states through head and loss and back, above all that is alive before it, and is
stated in bytes for each token and word of the vocabulary, at 32,768 tokens. On a CPU each side of that (tokens, chunk,
vocabulary, width) is divided by four, and so every buffer by sixteen, which leaves this number as it is. Nothing here
is timed, and another run gives the same bytes.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_pure import PureConfig, PureForCausalLM, loss_pure
from modeling_pure.training.kernels import compile_layers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEPTHS = (2, 4)
TOKENS = 512  # no weight has such a side, so that a saved tensor of the shape of a weight is that weight
LOSS_SIDES = {
    "tokens": 32_768,  # 16 rows of 2,048, a forward pass of the two-day recipe
    "chunk": loss_pure.CHUNK_TOKENS,
    "vocab_size": PureConfig.vocab_size,
    "hidden_size": PureConfig.hidden_size,
}
SHRINK = 1 if DEVICE == "cuda" else 4  # of all sides of the loss


def main() -> None:
    """Measure, print one line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(json.dumps(measure()))


def measure() -> dict:
    """All numbers; `ours` is the compiled model, the one that trains, and `peer` what Trainer does by itself."""
    saved = {
        name: round(saved_per_token_and_layer(*variant), 1)
        for name, variant in {
            "ours": (build_pure, compile_layers),
            "ours_eager": (build_pure, None),
            "peer": (build_llama, None),
            "peer_compiled": (build_llama, compile_llama_layers),
        }.items()
    }
    loss = {
        "loss_ours": loss_peak(build_pure, compile_layers),
        "loss_ours_eager": loss_peak(build_pure, None),
        "loss_peer": loss_peak(build_llama, None),
    }
    return {
        "name": "memory",
        "unit": "bytes saved for the backward pass, per token and layer",
        **saved,
        "peer_name": "LlamaForCausalLM of the same shape, bf16 autocast",
        "ratio": round(saved["peer"] / saved["ours"], 2),
        "loss_unit": "peak bytes of head and loss, per token and word of the vocabulary",
        **{name: round(peak, 2) for name, peak in loss.items()},
        "loss_ratio": round(loss["loss_peer"] / loss["loss_ours"], 2),
        "loss_at": {side: size // SHRINK for side, size in LOSS_SIDES.items()},
        "loss_stands_for": LOSS_SIDES,
        "device": device_name(),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers)},
    }


def device_name() -> str:
    """The accelerator, or the CPU and its threads."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def small_config(vocab_size: int = 256, **sides: int) -> PureConfig:
    """The full model but for these sides; its special tokens fit any vocabulary."""
    special = {"num_real_tokens": None, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    return PureConfig(vocab_size=vocab_size, **special, **sides)


def build_pure(config: PureConfig) -> PureForCausalLM:
    """Ours, in training."""
    with torch.device(DEVICE):
        return PureForCausalLM(config).train()


def build_llama(config: PureConfig) -> LlamaForCausalLM:
    """The peer of the same shape, in training."""
    with torch.device(DEVICE):
        return LlamaForCausalLM(llama_config(config)).train()


def llama_config(config: PureConfig) -> LlamaConfig:
    """Llama's configuration of the same shape."""
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
    heads = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "bos_token_id", "eos_token_id")
    fields = {field: getattr(config, field) for field in (*shared, *heads)}
    return LlamaConfig(**fields, tie_word_embeddings=False, use_cache=False)  # Trainer makes no cache


def compile_llama_layers(model: LlamaForCausalLM) -> None:
    """What `compile_layers` does, for the peer."""
    for layer in model.model.layers:
        layer.compile()


def saved_per_token_and_layer(build: Callable, compile_model: Callable | None) -> float:
    """Bytes for the backward pass that one more layer costs each token."""
    shallow, deep = (saved_of_a_pass(build, compile_model, depth) for depth in DEPTHS)
    return (deep - shallow) / (DEPTHS[1] - DEPTHS[0]) / TOKENS


def saved_of_a_pass(build: Callable, compile_model: Callable | None, depth: int) -> int:
    """Bytes that the decoder saves for the backward pass over one row."""
    torch._dynamo.reset()
    model = build(small_config(num_hidden_layers=depth))
    if compile_model:
        compile_model(model)
    ids = torch.randint(256, (1, TOKENS), device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        model.model(ids)  # what is compiled is compiled without the counting
    with torch.autocast(DEVICE, torch.bfloat16), saved_bytes(model) as storages:
        out = model.model(ids)
    assert out.last_hidden_state.requires_grad  # still alive, and with it all that was saved
    return sum(storages.values())


@contextmanager
def saved_bytes(model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Yields bytes by address of every storage saved inside, but for the model's weights.

    Autocast's copy of a weight is known by its shape, also transposed. Keep the output until the bytes are summed.
    """
    weights = {tuple(sorted(weight.shape)) for weight in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(sorted(tensor.shape)) not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


def loss_peak(build: Callable, compile_model: Callable | None) -> float:
    """Peak bytes of head and loss, forward and backward, per token and word."""
    torch._dynamo.reset()
    tokens, chunk, vocab, hidden_size = (size // SHRINK for size in LOSS_SIDES.values())
    model = build(small_config(vocab_size=vocab, hidden_size=hidden_size, num_hidden_layers=1))
    model.model.layers = torch.nn.ModuleList()  # a depth of 0 is no valid configuration
    if compile_model:
        compile_model(model)
    hidden = torch.randn(1, tokens, hidden_size, device=DEVICE, requires_grad=True)
    labels = torch.randint(vocab, (1, tokens), device=DEVICE)

    def run() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = model(inputs_embeds=hidden, labels=labels, num_items_in_batch=tokens).loss
        loss.backward()

    with patch.object(loss_pure, "CHUNK_TOKENS", chunk):
        run()  # what is to be compiled is compiled
        model.zero_grad()
        hidden.grad = None
        return peak_bytes(run) / tokens / vocab


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that tensors of a call take at one time, above what is alive before it.

    On a CPU every allocation is recorded by torch's profiler, those of compiled code too.
    """
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    with TemporaryDirectory() as folder:
        recorded.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    allocations = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate((event["args"]["Bytes"] for event in allocations), initial=0))


if __name__ == "__main__":
    main()
