"""Loss and gradients from hidden states, in several ways: seconds, peak memory and error, in the same run.

    python -m benchmarks.loss [--tokens 1024]

Forward and backward through head and cross entropy at the full model's width and vocabulary, in bf16 autocast over
float32 weights. Variants: `plain` (all logits, then F.cross_entropy in float32), the same compiled, `ours`
(`ChunkedCrossEntropy`: gradients from the forward pass, chunk by chunk), ours with its elementwise part compiled as on
a GPU, and `trl`, the fused head of TRL's trainers. On a CPU a chunk has half of the tokens. The variants alternate;
time is the median. Memory includes gradients and excludes inputs. The error is that of the gradients against plain
float32, ||g - g32|| / ||g32||.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from trl.kernels import chunked_logprob
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from benchmarks.measure import DEVICE, Work, alternate, print_line
from modeling_pure import PureConfig, loss_pure
from modeling_pure.loss_pure import ChunkedCrossEntropy, PureTokenLoss

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
ROUNDS = 3


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768 if DEVICE == "cuda" else 1024, help="of a forward pass")
    tokens = parser.parse_args().tokens
    chunk = loss_pure.CHUNK_TOKENS if DEVICE == "cuda" else tokens // 2
    with patch.object(loss_pure, "CHUNK_TOKENS", chunk), patch.object(chunked_logprob, "TOKEN_CHUNK_SIZE", chunk):
        variants = measure(tokens)
    ours, peer = (variants[name]["seconds"] for name in ("ours_compiled", "plain"))
    unit = f"seconds, forward and backward of head and loss, {tokens} tokens in chunks of {chunk}, bf16 autocast"
    packages = ("torch", "transformers", "trl")
    print_line(
        "loss",
        unit,
        ours,
        peer,
        "all logits, then F.cross_entropy",
        round(peer / ours, 2),
        packages,
        variants=variants,
    )


def measure(tokens: int) -> dict[str, dict[str, float]]:
    """Seconds, peak and errors of every variant."""
    torch.manual_seed(0)
    width, vocab = PureConfig.hidden_size, PureConfig.vocab_size
    hidden = torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocab, width, device=DEVICE).mul_(0.02).requires_grad_()
    labels = torch.randint(vocab, (tokens,), device=DEVICE)
    exact = gradients(plain, hidden.detach().float().requires_grad_(), weight, labels, autocast=False)
    works = {name: partial(gradients, loss, hidden, weight, labels) for name, loss in losses().items()}
    facts = {}
    for name, work in works.items():
        errors = [relative_error(*pair) for pair in zip(work(), exact, strict=True)]  # also compiles
        facts[name] = {
            "peak_gb": round(peak_bytes(work) / 1e9, 3),
            "error_hidden": errors[0],
            "error_weight": errors[1],
        }
    times = alternate(works, ROUNDS)
    return {name: {"seconds": round(statistics.median(times[name]), 4), **facts[name]} for name in works}


def losses() -> dict[str, Loss]:
    """The variants."""
    compiled = PureTokenLoss()
    compiled.compile()
    ways = {"plain": plain, "plain_compiled": torch.compile(plain), "trl": trl_head}
    return {**ways, "ours": partial(ours, PureTokenLoss()), "ours_compiled": partial(ours, compiled)}


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The usual way, as in transformers."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)


def ours(token_loss: PureTokenLoss, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of `PureForCausalLM` in training."""
    return ChunkedCrossEntropy.apply(hidden, weight, labels, len(labels), token_loss)


def trl_head(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`trl.trainer.utils.add_fused_lm_head`, with its chunks of the vocabulary and our chunks of tokens."""
    arguments = (hidden, weight, None, labels, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs",))
    return -chunked_logprob.ChunkedLogProbFunction.apply(*arguments)[0].mean()


def gradients(loss: Loss, *inputs: torch.Tensor, autocast: bool = True) -> tuple[torch.Tensor, ...]:
    """Gradients of hidden states and weight: forward under autocast and backward outside, as in Trainer."""
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        value = loss(*inputs)
    return torch.autograd.grad(value, inputs[:2])


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative error of a tensor in the Frobenius norm."""
    return float(f"{(found.float() - exact).norm() / exact.norm():.2g}")


def peak_bytes(work: Work) -> int:
    """Peak memory of a call's tensors, above what was allocated before it.

    On a CPU, torch's profiler records all allocations, including those of compiled code.
    """
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    with TemporaryDirectory() as folder:
        recorded.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    allocations = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate((event["args"]["Bytes"] for event in allocations), initial=0))


if __name__ == "__main__":
    main()
