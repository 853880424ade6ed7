"""Profiles of a step: kernels by kind, idle time of the GPU, and the longest kernels.

Recorded with torch.profiler after a warm-up that includes compilation. Shares are of the time of all kernels; `idle`
is the rest of the wall time, as if kernels did not overlap. Recording slows the host: compare `ms_recorded` with `ms`,
which was measured without the profiler. On a CPU operators are counted, and nothing is compiled.
"""

import gzip
import re
import tempfile
from collections import Counter
from collections.abc import Iterator

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from benchmarks import grpo, step
from benchmarks.measure import DEVICE, Work, now

from . import speed
from .grpo import scale_of
from .runner import Setting

PRODUCTS, ELEMENTWISE, OTHER = "matrix products", "norms and elementwise", "other"
KINDS = (  # the first pattern in a name decides, ignoring case
    ("loss", r"logsumexp|log_?softmax|nll_loss|cross_entropy|^triton_.*arange.*_eq_exp"),
    (ELEMENTWISE, r"^triton_(poi|red|per)_"),  # fused kernels, whose names list other kinds
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
TOP = 10
TRACE_BYTES = 16_000_000


def pretraining(setting: Setting) -> Iterator[dict]:
    """Training steps as in `speed`."""
    scale, steps = speed.scale_of(setting), 2 if setting.tiny else 4
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_steps": scale.warm_up + 1 + 2 * steps, "compile_layers": DEVICE == "cuda"}
        trainer = step.build_trainer(step.OURS, scale, folder, **settings)
        recording = Recording(setting, "pretraining step", scale.warm_up, steps)
        trainer.add_callback(recording)
        trainer.train()
    yield recording.row
    recording.save_trace()


def rollout(setting: Setting) -> Iterator[dict]:
    """One rollout, per token of a completion."""
    scale, folder = scale_of(setting), str(setting.work)
    grpo.save_model(folder, scale)
    trainer = grpo.build_trainer(grpo.OURS, scale, folder)
    work = grpo.samplers(scale, trainer, scale.completions_per_step, scale.completion)[grpo.OURS]
    yield from Recording(setting, "token of a rollout", 1, 1, scale.completion).run(work)


def scoring(setting: Setting) -> Iterator[dict]:
    """Scoring and update for one optimizer step of GRPO."""
    scale, folder = scale_of(setting), str(setting.work)
    grpo.save_model(folder, scale)
    work = grpo.scorer(scale, grpo.build_trainer(grpo.OURS, scale, folder))
    yield from Recording(setting, "scoring and update", 1, 1).run(work)


class Recording(TrainerCallback):
    """After the warm-up, `steps` timed steps, one while the profiler starts, and `steps` recorded ones.

    Args:
        parts: divisor of the figures, if one step stands for several.
    """

    def __init__(self, setting: Setting, what: str, warm_up: int, steps: int, parts: int = 1):
        self.setting, self.warm_up, self.steps, self.parts = setting, warm_up, steps, parts * steps
        self.row, self.done = {"what": what}, 0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Called after the optimizer's step."""
        self.advance()

    def run(self, work: Work) -> Iterator[dict]:
        """Call `work` for a whole recording; yield the row, then write the trace, which may take long."""
        for _ in range(self.warm_up + 1 + 2 * self.steps):
            work()
            self.advance()
        yield self.row
        self.save_trace()

    def advance(self) -> None:
        """Called after each step."""
        self.done += 1
        place = self.done - self.warm_up
        if place == self.steps:
            self.row["ms"] = round(1e3 * (now() - self.begin) / self.parts, 3)
        if place in (self.steps, self.steps + 1):  # excludes the start of the profiler
            self.stop()
            self.profile = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (DEVICE == "cuda")])
            self.profile.start()
        if place in (0, self.steps + 1):
            self.begin = now()
        if place == 2 * self.steps + 1:
            taken = now() - self.begin
            self.stop()
            self.row |= summary(self.profile, taken, self.parts)

    def stop(self) -> None:
        """Stop recording if it has started."""
        now()
        if hasattr(self, "profile"):
            self.profile.stop()

    def save_trace(self) -> None:
        """Save the trace for Perfetto unless it is too large."""
        name = self.row["what"].replace(" ", "-")
        self.profile.export_chrome_trace(str(self.setting.work / f"{name}.json"))
        packed = gzip.compress((self.setting.work / f"{name}.json").read_bytes(), compresslevel=6)
        if len(packed) <= TRACE_BYTES:
            (self.setting.out / f"trace-{name}.json.gz").write_bytes(packed)


def summary(recorded: profile, taken: float, parts: int) -> dict:
    """Shares by kind, idle share and the longest kernels."""
    time_of = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    kernels = [
        (event.key, getattr(event, time_of), event.count)
        for event in recorded.key_averages()
        # Our and torch's annotations span kernels that are counted already.
        if event.device_type == (DeviceType.CUDA if DEVICE == "cuda" else DeviceType.CPU)
        and not event.is_user_annotation
    ]
    return summarize(kernels, 1e6 * taken, parts)


def summarize(kernels: list[tuple[str, float, int]], taken: float, parts: int) -> dict:
    """The same, from names, microseconds and calls of kernels, and their wall time in microseconds."""
    total = sum(spent for _, spent, _ in kernels)
    if not total:
        raise RuntimeError("the profiler recorded no kernel; may this process trace the GPU?")
    by_kind = Counter()
    for name, spent, _ in kernels:
        by_kind[kind_of(name)] += spent
    return {
        "ms_recorded": round(taken / 1e3 / parts, 3),
        "kernel_ms": round(total / 1e3 / parts, 3),
        "kernels": round(sum(calls for _, _, calls in kernels) / parts),
        "idle": round(max(0.0, 1 - total / taken), 4),
        **{kind: round(by_kind[kind] / total, 4) for kind in CATEGORIES},
        "top": [
            {"kernel": name, "kind": kind_of(name), "calls": calls / parts, "ms": round(spent / 1e3 / parts, 3)}
            for name, spent, calls in sorted(kernels, key=lambda kernel: -kernel[1])[:TOP]
        ],
    }


def kind_of(name: str) -> str:
    """The kind of a kernel or operator."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), OTHER)
