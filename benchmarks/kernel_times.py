"""What a trace of torch.profiler says: the time of kernels by kind, those that take most, and when none of them ran.

On a GPU its kernels and copies are counted, on a CPU operators. Which kind one is, its name tells: the table below.
"""

import re
from collections import Counter
from dataclasses import dataclass

PRODUCTS, ELEMENTWISE, OTHER = "matrix products", "norms and elementwise", "other"
KINDS = (  # the first pattern that is found in a name decides; capitals do not matter
    ("loss", r"logsumexp|log_?softmax|nll_loss|cross_entropy|^triton_.*arange.*_eq_exp"),
    (ELEMENTWISE, r"^triton_(poi|red|per)_"),  # these names list what was fused, from any kind
    ("optimizer", r"multi_tensor|fused_adam|_foreach_|lpnorm|linalg_vector_norm"),
    ("attention", r"flash|fmha|sdpa|attention|softmax|dot_do_o|convert_dq"),
    (PRODUCTS, r"gemm|gemv|nvjet|cutlass|cublas|splitk|^triton_(tem|mm)|^aten::(mm|addmm|bmm|baddbmm|mv|dot)$"),
    ("indexing", r"index|gather|scatter|sort|topk|scan|cumsum|embedding|grad_weight|krn_partial|cub::|nonzero"),
    ("copies and casts", r"memcpy|memset|copy|fillfunctor|catarray|^aten::(fill_|zero_|cat|stack|clone)$"),
    (ELEMENTWISE, r"elementwise|reduce_kernel|layer_norm|rms_norm|triton"),
    (ELEMENTWISE, r"^aten::(add|sub|mul|div|pow|neg|exp|log|rsqrt|silu|silu_backward|sum|mean|sin|cos|rand)_?$"),
    (ELEMENTWISE, r"^aten::(where|eq|ne|lt|le|gt|ge|max|min|amax|clamp|masked_fill|isfinite|bitwise_\w+)_?$"),
)
CATEGORIES = tuple(dict.fromkeys([*(kind for kind, _ in KINDS), OTHER]))
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # what traces call that which a GPU runs
TOP = 10


@dataclass
class Span:
    """Something that ran, in microseconds; `own` is without what ran within it."""

    name: str
    start: float
    end: float
    own: float


def spans_of(events: list[dict], *categories: str) -> list[Span]:
    """The events of these categories, from the first to the last, each before what ran within it."""
    found = [event for event in events if event.get("cat") in categories]
    found.sort(key=lambda event: (event["ts"], -event["dur"]))
    return [Span(event["name"], event["ts"], event["ts"] + event["dur"], event["dur"]) for event in found]


def operators(events: list[dict]) -> list[Span]:
    """The operators of a CPU, thread by thread, each without the time of those that it called."""
    spans = []
    for thread in {event["tid"] for event in events if event.get("cat") == "cpu_op"}:
        callers: list[Span] = []
        for span in spans_of([event for event in events if event.get("tid") == thread], "cpu_op"):
            while callers and callers[-1].end <= span.start:
                callers.pop()
            if callers:
                callers[-1].own -= span.own
            callers.append(span)
            spans.append(span)
    return spans


def kind_of(name: str) -> str:
    """The kind of a kernel or operator."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), OTHER)


def summarize(spans: list[Span], seconds: float, steps: int) -> dict:
    """Shares by kind, idle share, and the kernels that take most time, of what ran in some steps."""
    total = sum(span.own for span in spans)
    by_kind, by_name, calls = Counter(), Counter(), Counter()
    for span in spans:
        by_kind[kind_of(span.name)] += span.own
        by_name[span.name] += span.own
        calls[span.name] += 1
    return {
        "ms_recorded": round(1e3 * seconds / steps, 3),
        "kernel_ms": round(total / 1e3 / steps, 3),
        "kernels": round(len(spans) / steps),
        "idle": round(1 - busy(spans) / (seconds * 1e6), 4),
        **{kind: round(by_kind[kind] / total, 4) for kind in CATEGORIES},
        "top": [
            {"kernel": name, "kind": kind_of(name), "calls": calls[name] / steps, "ms": round(own / 1e3 / steps, 3)}
            for name, own in by_name.most_common(TOP)
        ],
    }


def busy(spans: list[Span]) -> float:
    """Microseconds in which at least one of them ran."""
    total, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return total
