"""Ways from hidden states to the loss and its gradients: seconds, peak memory and error of each, in the same run.

    python -m benchmarks.loss

Forward and backward through head and cross entropy at the full model's width (1,152) and vocabulary (50,304): on a GPU
of 32,768 tokens, a forward pass of the two-day recipe, on a CPU of fewer. Variants:

    plain             all logits, F.cross_entropy in float32
    plain_compiled    the same under torch.compile
    compiled_chunks   torch.compile over chunks of tokens, each with activation checkpointing
    ours              ChunkedCrossEntropy: gradients are made in the forward pass, chunk by chunk
    ours_compiled     the same with the elementwise part compiled, as in training on a GPU
    trl               the fused head that TRL's trainers install; left out where trl is not installed

All chunks of tokens have the same size. Each variant runs in float32 and in bf16 autocast over float32 weights, in
turns; time is the median of the turns. Memory is what a pass takes above its inputs, its gradients included. The error
is that of the gradients, ||g - g_plain_float32|| / ||g_plain_float32||.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from unittest.mock import patch

import torch
import torch.nn.functional as F
import transformers
from torch.utils.checkpoint import checkpoint

from benchmarks.memory import DEVICE, device_name, peak_bytes
from modeling_pure import PureConfig, loss_pure
from modeling_pure.loss_pure import ChunkedCrossEntropy, PureTokenLoss

HIDDEN, VOCAB = PureConfig.hidden_size, PureConfig.vocab_size
TOKENS, CHUNK, TURNS = (32_768, 4096, 7) if DEVICE == "cuda" else (1024, 512, 3)
DTYPES = {"float32": torch.float32, "bf16_autocast": torch.bfloat16}

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    """Measure, print one line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with patch.object(loss_pure, "CHUNK_TOKENS", CHUNK):
        print(json.dumps(measure()))


def measure() -> dict:
    """All variants; `ours` and `peer` are the seconds in bf16 of what trains on a GPU and of the plain loss."""
    variants = {name: measure_dtype(dtype) for name, dtype in DTYPES.items()}
    seconds = {name: facts["seconds"] for name, facts in variants["bf16_autocast"].items()}
    return {
        "name": "loss",
        "unit": f"seconds, forward and backward of head and loss, {TOKENS} tokens, bf16 autocast",
        "ours": seconds["ours_compiled"],
        "peer": seconds["plain"],
        "peer_name": "all logits, then F.cross_entropy",
        "ratio": round(seconds["plain"] / seconds["ours_compiled"], 2),
        "variants": variants,
        "sides": {"tokens": TOKENS, "chunk": CHUNK, "hidden_size": HIDDEN, "vocab_size": VOCAB},
        "left_out": {} if "trl" in seconds else {"trl": "not installed"},
        "device": device_name(),
        "versions": {module.__name__: module.__version__ for module in versions()},
    }


def versions() -> list:
    """The packages that took part."""
    if not find_spec("trl"):
        return [torch, transformers]
    import trl

    return [torch, transformers, trl]


def measure_dtype(dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Seconds, peak and errors of every variant in one precision."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, device=DEVICE).to(dtype).requires_grad_()  # as the last norm gives them
    weight = torch.randn(VOCAB, HIDDEN, device=DEVICE).mul_(0.02).requires_grad_()
    labels = torch.randint(VOCAB, (TOKENS,), device=DEVICE)
    exact = gradients(plain, hidden.detach().float().requires_grad_(), weight, labels)
    autocast = partial(torch.autocast, DEVICE, dtype, enabled=dtype != torch.float32)
    passes = {name: partial(one_pass, loss, hidden, weight, labels, autocast) for name, loss in losses().items()}
    facts = {}
    for name, run in passes.items():
        errors = [relative_error(*pair) for pair in zip(run(), exact, strict=True)]  # and compiles what is to be
        facts[name] = {"peak_gb": round(peak_bytes(run) / 1e9, 3)}
        facts[name] |= dict(zip(("error_hidden", "error_weight"), errors, strict=True))
    turns = [{name: seconds(run) for name, run in passes.items()} for _ in range(TURNS)]
    median = {name: statistics.median(turn[name] for turn in turns) for name in passes}
    return {name: {"seconds": round(median[name], 4), **facts[name]} for name in passes}


def losses() -> dict[str, Loss]:
    """The variants, freshly compiled."""
    torch._dynamo.reset()
    compiled_part = PureTokenLoss()
    compiled_part.compile()
    variants = {
        "plain": plain,
        "plain_compiled": torch.compile(plain),
        "compiled_chunks": torch.compile(checkpointed_chunks),
        "ours": partial(ours, PureTokenLoss()),
        "ours_compiled": partial(ours, compiled_part),
    }
    return {**variants, "trl": trl_head()} if find_spec("trl") else variants


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What one writes first, and what transformers does."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)


def checkpointed_chunks(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The plain loss, a chunk of tokens at a time; logits are made again in the backward pass."""
    chunks = zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True)
    means = [checkpoint(plain, states, weight, targets, use_reentrant=False) for states, targets in chunks]
    return torch.stack(means).mean()


def ours(token_loss: PureTokenLoss, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of `PureForCausalLM` in training."""
    return ChunkedCrossEntropy.apply(hidden, weight, labels, len(labels), token_loss)


def trl_head() -> Loss:
    """What `trl.trainer.utils.add_fused_lm_head` computes, with its chunks of words and our chunks of tokens."""
    from trl.kernels import chunked_logprob
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    def loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        arguments = (hidden, weight, None, labels, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs",))
        with patch.object(chunked_logprob, "TOKEN_CHUNK_SIZE", CHUNK):
            return -chunked_logprob.ChunkedLogProbFunction.apply(*arguments)[0].mean()

    return loss


def one_pass(
    loss: Loss,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    autocast: Callable[[], AbstractContextManager],
) -> tuple[torch.Tensor, ...]:
    """Forward under autocast and backward outside, as Trainer does; gives the gradients."""
    with autocast():
        value = loss(hidden, weight, labels)
    return torch.autograd.grad(value, (hidden, weight))


def gradients(loss: Loss, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The gradients without autocast."""
    return torch.autograd.grad(loss(*inputs), inputs[:2])


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the whole tensor, in the Frobenius norm."""
    return float(f"{(found.float() - exact).norm() / exact.norm():.2g}")


def seconds(run: Callable[[], object]) -> float:
    """Wall time of a call, until the device has finished."""
    start = time.perf_counter()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
