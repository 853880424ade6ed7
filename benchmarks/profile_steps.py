"""Where the time of a step goes: kernels by kind, and the time in which the GPU has nothing to do.

    python -m benchmarks.profile_steps [--out docs/results] [--trace DIR]
    python -m benchmarks.profile_steps --tiny --out /tmp/tiny      # the same code on a CPU, in a minute

Records with torch.profiler, after a warm-up that holds all compilation: pretraining steps of the full model at
16 x 2,048 tokens, ours compiled, HF Llama under the stock Trainer, and that with gradient checkpointing; a GRPO
rollout, whose step is one more token of all completions (the prompts are in the first); GRPO's scoring with update.
They are the trainings of `gpu_pretrain` and `gpu_grpo`, with the attention kernel that torch chooses by itself.

Kinds are told by the names of kernels, on a CPU by those of operators, less what runs within them: `kernel_times` has
the table. A name that fits none is "other"; a softmax counts as attention, a log-softmax as loss, in sampling too.
Shares are of the time of all kernels. `idle` is the share of the recorded wall clock when no kernel runs. Recording
slows the host, and so a GPU that waits for it: `ms_per_step` was taken before, without the profiler, to be held beside
`ms_recorded`. `matmul_tflops` is 6 FLOPs for each token and weight (but for the input embedding) over the time of the
kernels of matrix products, attention's own being in neither; where layers run twice it is left out.

On a CPU ours is not compiled, for the profiler would not see into it. The rows are written as `profile-DEVICE.json`,
with tables beside it, also of the ten kernels that take most time; --trace keeps the traces, for Perfetto.
"""

import argparse
import gc
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from benchmarks import gpu_grpo, gpu_pretrain
from benchmarks.gpu_pretrain import COMPILED, SEED_RECIPE, pure_trainer, stock_trainer, versions, write_rows
from benchmarks.kernel_times import CATEGORIES, ON_GPU, PRODUCTS, operators, spans_of, summarize
from benchmarks.memory import DEVICE, device_name
from benchmarks.syncs import arguments
from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.errors import RunStopped
from modeling_pure.training.report import model_flops

WARM_UP = 3
COLUMNS = ("ms_per_step", "ms_recorded", "kernel_ms", "kernels", "idle", "matmul_tflops", *CATEGORIES)
OURS = COMPILED if DEVICE == "cuda" else "ours"


@dataclass(frozen=True)
class Scale:
    """What is recorded, and how many steps of pretraining."""

    pretrain: gpu_pretrain.Scale
    grpo: gpu_grpo.Scale
    steps: int


FULL = Scale(gpu_pretrain.Scale(), gpu_grpo.Scale(), 4)
TINY = Scale(gpu_pretrain.TINY, gpu_grpo.TINY, 2)


def main() -> None:
    """Record, write the rows, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder for the rows and the tables")
    parser.add_argument("--trace", type=Path, help="folder for the traces, which are large")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to try the code")
    options = parser.parse_args()
    if not options.tiny and DEVICE != "cuda":
        parser.error("there is no GPU here; --tiny runs on the CPU")
    scale = TINY if options.tiny else FULL
    name = "tiny" if options.tiny else torch.cuda.get_device_name().lower().replace(" ", "-")
    command = "python -m benchmarks.profile_steps" + (" --tiny" if options.tiny else "")
    facts = {"device": device_name(), "versions": gpu_grpo.facts(scale.grpo)["versions"], "command": command}
    rows = []
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        traces = options.trace or Path(folder, "traces")
        for made in (options.out, traces):
            made.mkdir(parents=True, exist_ok=True)
        for row in chain(pretraining_rows(scale, folder, traces), grpo_rows(scale.grpo, folder, traces)):
            rows.append({**row, **facts})
            write_results(rows, options.out / f"profile-{name}")
    print(json.dumps(summary(rows)))


def summary(rows: list[dict]) -> dict:
    """The line that is printed: time of all kernels in a step of pretraining, and what else the rows found."""
    of = {key: {row["what"]: row.get(key) for row in rows} for key in ("kernel_ms", "idle", PRODUCTS, "matmul_tflops")}
    ours, peer = of["kernel_ms"][OURS], of["kernel_ms"][SEED_RECIPE]
    return {
        "name": "profile_steps",
        "unit": "milliseconds of kernels in a pretraining step",
        "ours": ours,
        "peer": peer,
        "peer_name": f"{SEED_RECIPE}, under the stock Trainer",
        "ratio": round(peer / ours, 2) if ours and peer else None,
        **of,
        "device": device_name(),
        "versions": versions(),
    }


# ---- recording ------------------------------------------------------------------------------------------------------


class Recording:
    """Some steps without the profiler, and as many with it, whose trace is kept."""

    def __init__(self, what: str, warm_up: int, steps: int, traces: Path):
        self.warm_up, self.steps = warm_up, steps
        self.trace = traces / (re.sub(r"\W+", "-", what) + ".json")
        self.plain_seconds = self.seconds = 0.0

    def turns(self) -> Iterator[None]:
        """Ask for the next one before each step, and once after the last."""
        for _ in range(self.warm_up):
            yield
        began = now()
        for _ in range(self.steps):
            yield
        self.plain_seconds = now() - began
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (DEVICE == "cuda")]
        with profile(activities=activities):  # what starts with the first recording is in no figure
            yield
            now()
        with profile(activities=activities) as recorded:
            began = now()
            for _ in range(self.steps):
                yield
            self.seconds = now() - began
        recorded.export_chrome_trace(str(self.trace))

    def row(self, steps_in_one: int = 1) -> dict:
        """What the trace says, per step where each of the recorded ones stands for several."""
        events = json.loads(self.trace.read_text())["traceEvents"]
        spans = spans_of(events, *ON_GPU) if DEVICE == "cuda" else operators(events)
        if not spans:
            raise RuntimeError("the profiler has recorded no kernel; may this process trace the GPU?")
        steps = self.steps * steps_in_one
        return {"ms_per_step": round(1000 * self.plain_seconds / steps, 3), **summarize(spans, self.seconds, steps)}


def now() -> float:
    """Seconds, once the device has finished."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class RecordedTraining(TrainerCallback):
    """Records steps of `train()`."""

    def __init__(self, recording: Recording):
        self.turns = recording.turns()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Before the first step."""
        next(self.turns)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """After the optimizer's step."""
        next(self.turns, None)


def pretraining_rows(scale: Scale, folder: str, traces: Path) -> Iterator[dict]:
    """Ours and both of HF Llama."""
    sizes = {"rows": scale.pretrain.main_batch, "row_length": scale.pretrain.row_length}
    for what, build, changes in (
        (OURS, pure_trainer, {"compile_layers": DEVICE == "cuda"}),
        ("HF Llama", stock_trainer, {}),
        (SEED_RECIPE, stock_trainer, {"gradient_checkpointing": True}),
    ):
        free_memory()
        recording = Recording(what, WARM_UP, scale.steps, traces)
        try:
            train(recording, build, scale, {**arguments(folder), **changes})
        except (torch.OutOfMemoryError, RunStopped):
            yield {"what": what, **sizes, "failed": "out of memory"}
            continue
        row = recording.row()
        if DEVICE == "cuda" and what != SEED_RECIPE and row[PRODUCTS]:
            flops = products_flops(scale.pretrain) * sizes["rows"] * sizes["row_length"]
            row["matmul_tflops"] = round(flops / (row[PRODUCTS] * row["kernel_ms"] / 1e3) / 1e12, 1)
        yield {"what": what, **sizes, **row}


def train(recording: Recording, build: Callable, scale: Scale, settings: dict) -> None:
    """Train as `gpu_pretrain` does, for as many steps as the recording has turns."""
    settings |= {
        "max_steps": recording.warm_up + 2 * recording.steps + 1,
        "per_device_train_batch_size": scale.pretrain.main_batch,
        "gradient_accumulation_steps": 1,
        "bf16": True,
        "optim": "adamw_torch_fused",
    }
    trainer = build(settings, scale.pretrain, False)
    trainer.add_callback(RecordedTraining(recording))
    trainer.train()


def products_flops(scale: gpu_pretrain.Scale) -> int:
    """FLOPs of training on a token that are products with weights: those of `training_flops` without attention's."""
    with torch.device("meta"):
        return model_flops(PureForCausalLM(PureConfig.from_preset(scale.preset)), 0)


def grpo_rows(scale: gpu_grpo.Scale, folder: str, traces: Path) -> Iterator[dict]:
    """A rollout, and the scoring of what an optimizer step takes, with its gradient."""
    free_memory()
    gpu_grpo.save_model(folder, scale)
    trainer = gpu_grpo.build_trainer(gpu_grpo.OURS, scale, folder)
    sequences, length = scale.completions_per_step, scale.completion
    for what, build, steps in (
        ("GRPO rollout, a token", lambda: gpu_grpo.samplers(scale, trainer, sequences, length)[gpu_grpo.OURS], length),
        ("GRPO scoring and update", lambda: gpu_grpo.scorer(scale, trainer), 1),
    ):
        recording, work = Recording(what, 1, 1, traces), build()
        for _ in recording.turns():
            work()
        yield {"what": what, "rows": sequences, "row_length": scale.prompt + length, **recording.row(steps)}


def free_memory() -> None:
    """Let go of the training before."""
    torch._dynamo.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def write_results(rows: list[dict], path: Path) -> None:
    """All rows as JSON, their shares as a table, and for each a table of the kernels that take most time."""
    write_rows(
        rows, path, ("what", "rows", "row_length", *COLUMNS, *["failed"] * any("failed" in row for row in rows))
    )
    with path.with_suffix(".md").open("a") as file:
        for row in rows:
            print(
                f"\n{row['what']}\n\n| kernel | kind | calls a step | ms a step |\n| --- | --- | --- | --- |",
                file=file,
            )
            for top in row.get("top", []):
                name = top["kernel"].replace("|", " ")[:110]
                print(f"| `{name}` | {top['kind']} | {top['calls']:g} | {top['ms']} |", file=file)


if __name__ == "__main__":
    main()
