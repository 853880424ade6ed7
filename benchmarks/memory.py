"""Memory that decoder layers save for the backward pass, in bytes per token and layer, compared with HF Llama.

    python -m benchmarks.memory

As in pretraining: bf16 autocast over float32 weights, at the widths of the full model. The tensors that autograd saves
are counted, each storage once, without weights and their bf16 copies. The difference between two depths gives the
bytes of a layer, without embedding, rotary table and head. Results are reproducible. For the memory of the loss see
`benchmarks.loss`.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.measure import DEVICE, print_line
from benchmarks.step import LLAMA, OURS, build_model
from modeling_pure import PureConfig

DEPTHS = (2, 4)
TOKENS = 512  # no weight has this dimension, so a saved tensor with the shape of a weight is that weight


def main() -> None:
    """Measure and print one line; `ours` is the compiled model, the peer HF Llama as in the stock Trainer."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    ours, peer = saved_by_layer(OURS, compiled=True), saved_by_layer(LLAMA, compiled=False)
    print_line(
        "memory",
        "bytes saved for the backward pass, per token and layer",
        ours,
        peer,
        "LlamaForCausalLM of the same shape, bf16 autocast",
        round(peer / ours, 2),
        ours_eager=saved_by_layer(OURS, compiled=False),
        peer_compiled=saved_by_layer(LLAMA, compiled=True),
    )


def saved_by_layer(model: str, compiled: bool) -> float:
    """Bytes per token that another layer saves for the backward pass."""
    shallow, deep = (saved_by_decoder(model, compiled, depth) for depth in DEPTHS)
    return round((deep - shallow) / (DEPTHS[1] - DEPTHS[0]) / TOKENS, 1)


def saved_by_decoder(model: str, compiled: bool, depth: int) -> int:
    """Bytes that the decoder saves for the backward pass over one sequence."""
    torch._dynamo.reset()
    special = {"num_real_tokens": None, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    net = build_model(model, PureConfig(vocab_size=256, num_hidden_layers=depth, **special)).train()
    for layer in net.model.layers if compiled else ():
        layer.compile()
    ids = torch.randint(256, (1, TOKENS), device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        net.model(ids)  # compiles outside the counting
    with torch.autocast(DEVICE, torch.bfloat16), saved_bytes(net) as storages:
        out = net.model(ids)
    assert out.last_hidden_state.requires_grad  # keeps the saved tensors alive
    return sum(storages.values())


@contextmanager
def saved_bytes(model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Yields bytes by address of the storages saved inside, without the model's weights.

    Autocast's copy of a weight is recognised by its shape, also transposed. Keep the output until the bytes are
    summed.
    """
    weights = {tuple(sorted(weight.shape)) for weight in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(sorted(tensor.shape)) not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


if __name__ == "__main__":
    main()
