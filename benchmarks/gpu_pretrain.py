"""Pretraining speed on one GPU, ours beside HF Llama under the stock Trainer: tokens per second, MFU, peak memory.

    python -m benchmarks.gpu_pretrain [--out docs/results]
    python -m benchmarks.gpu_pretrain --tiny --out /tmp/tiny      # the same code on a CPU, in a minute

Every configuration is a training of its own on random tokens that lie in memory: Trainer, optimizer, bf16 autocast and
the full model (401M parameters, rows of 2,048 tokens). There are two rounds over all of them, as far as the minutes
reach, each with two timed stretches after the warm-up; speed is the median of all. The peer is the recipe that this
project began with: HF Llama of the same shape, bf16, adamw_torch_fused, gradient checkpointing. MFU is stated in two
conventions: FLOPs of a token are 6N + 12LhS with N the parameters but for the input embedding, or with 6LhS
(`mfu_causal`), which leaves out what causal attention need not compute. A configuration that does not fit is a row
that says so. The rows are written after each training as `speed-pretrain-DEVICE.json` with a table beside it. Of
several GPUs choose one, for instance with CUDA_VISIBLE_DEVICES=0.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.memory import DEVICE, device_name, llama_config
from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.doctor.model import RandomRows, random_rows
from modeling_pure.errors import RunStopped
from modeling_pure.training.arguments import PureTrainingArguments
from modeling_pure.training.report import model_flops
from modeling_pure.training.throughput import peak_tflops
from modeling_pure.training.trainer import PureTrainer

KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
SEED_RECIPE, COMPILED = "HF Llama, checkpointing", "ours, compiled"
MODELS = {
    SEED_RECIPE: {"gradient_checkpointing": True},
    "HF Llama": {},
    "ours": {"compile_layers": False},
    COMPILED: {"compile_layers": True},
}
WARM_UP_STEPS, STRETCHES, ROUNDS = 3, 2, 2


@dataclass(frozen=True)
class Scale:
    """What is trained, and how much of it."""

    preset: str = "medium-large"
    row_length: int = 2048
    main_batch: int = 16
    other_batches: tuple[int, ...] = (32, 8)
    kernels: tuple[str, ...] = ("flash", "cudnn")
    varlen: str = "varlen"
    stretch_tokens: int = 131_072


TINY = Scale("tiny", 64, 2, (1,), ("default",), "default", 256)


@dataclass
class Setup:
    """One configuration and what was measured of it."""

    model: str
    kernel: str
    batch: int
    arguments: dict
    document_mask: bool = False
    speeds: list[float] = field(default_factory=list)
    peak_memory: int = 0
    failed: str | None = None


def main() -> None:
    """Measure, write the rows, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder for the rows and the table")
    parser.add_argument("--minutes", type=float, default=8, help="no training begins after them")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to try the code")
    options = parser.parse_args()
    if not options.tiny and DEVICE != "cuda":
        parser.error("there is no GPU here; --tiny runs on the CPU")
    scale = TINY if options.tiny else Scale()
    name = "tiny" if options.tiny else torch.cuda.get_device_name().lower().replace(" ", "-")
    options.out.mkdir(parents=True, exist_ok=True)
    setups, deadline = configurations(scale), time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        for _ in range(ROUNDS):
            for setup in setups:
                if setup.failed or time.monotonic() > deadline:
                    continue
                measure(setup, scale, folder)
                write_rows(rows_of(setups, scale), options.out / f"speed-pretrain-{name}")
    print(json.dumps(summary(setups, scale)))


def configurations(scale: Scale) -> list[Setup]:
    """All of them, what matters most first; the main batch also with what a user can turn on."""
    compiled, kernel, batch = MODELS[COMPILED], scale.kernels[0], scale.main_batch
    return [
        *setups_of(scale, batch),
        Setup(f"{COMPILED}, document mask", scale.varlen, batch, compiled, document_mask=True),
        Setup(f"{COMPILED}, Muon", kernel, batch, {**compiled, "optimizer": "muon"}),
        Setup(f"{COMPILED}, checkpointing", kernel, batch, {**compiled, "gradient_checkpointing": True}),
        *(setup for other in scale.other_batches for setup in setups_of(scale, other)),
    ]


def setups_of(scale: Scale, batch: int) -> list[Setup]:
    """Every model with every kernel."""
    return [Setup(model, kernel, batch, more) for kernel in scale.kernels for model, more in MODELS.items()]


# ---- one training ---------------------------------------------------------------------------------------------------


def measure(setup: Setup, scale: Scale, folder: str) -> None:
    """Train once and note speeds and peak, or why there are none."""
    torch._dynamo.reset()  # kernels are chosen while compiling,
    torch._functorch.config.enable_autograd_cache = False  # and this cache does not know by which choice
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        setup.speeds += train(setup, scale, folder)
    except (torch.OutOfMemoryError, RunStopped):  # the latter is ours, with one row in a pass
        setup.failed = "out of memory"
    except RuntimeError as error:  # no such kernel for this GPU, or not for heads of this size
        setup.failed = str(error).strip().splitlines()[0][:120]
    if DEVICE == "cuda":
        setup.peak_memory = torch.cuda.max_memory_allocated()
    print(setup, file=sys.stderr, flush=True)


def train(setup: Setup, scale: Scale, folder: str) -> list[float]:
    """Tokens per second of each timed stretch."""
    stretch = max(1, scale.stretch_tokens // (setup.batch * scale.row_length))
    watch = Stopwatch(WARM_UP_STEPS, stretch)
    arguments = {
        "output_dir": folder,
        "max_steps": WARM_UP_STEPS + STRETCHES * stretch,
        "per_device_train_batch_size": setup.batch,
        "bf16": True,
        "use_cpu": DEVICE == "cpu",
        "optim": "adamw_torch_fused",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        **setup.arguments,
    }
    build = stock_trainer if setup.model.startswith("HF") else pure_trainer
    trainer = build(arguments, scale, setup.document_mask)
    trainer.add_callback(watch)
    with sdpa_kernel(KERNELS[setup.kernel]) if setup.kernel in KERNELS else nullcontext():
        trainer.train()
    if getattr(trainer, "rows_per_pass", setup.batch) < setup.batch:  # ours goes on with fewer rows
        raise torch.OutOfMemoryError
    return [stretch * setup.batch * scale.row_length / (end - begin) for begin, end in pairwise(watch.times)]


class Stopwatch(TrainerCallback):
    """Notes the time after the warm-up and after each stretch, once the device has finished."""

    def __init__(self, warm_up: int, stretch: int):
        self.warm_up, self.stretch, self.times = warm_up, stretch, []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """After the optimizer's step."""
        timed = state.global_step - self.warm_up
        if timed >= 0 and timed % self.stretch == 0:
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())


def stock_trainer(arguments: dict, scale: Scale, document_mask: bool) -> Trainer:
    """The peer: transformers' model and Trainer, with their defaults."""
    with torch.device(DEVICE):
        model = LlamaForCausalLM(llama_config(PureConfig.from_preset(scale.preset)))
    return Trainer(model, TrainingArguments(**arguments), train_dataset=StockRows(rows_at(scale)))


def pure_trainer(arguments: dict, scale: Scale, document_mask: bool) -> PureTrainer:
    """Ours, as train_pretrain.py builds it."""
    with torch.device(DEVICE):
        model = PureForCausalLM(PureConfig.from_preset(scale.preset))
    dataset = RandomRows(rows_at(scale))
    return PureTrainer(model, PureTrainingArguments(**arguments), train_dataset=dataset, document_mask=document_mask)


# ---- data -----------------------------------------------------------------------------------------------------------


def rows_at(scale: Scale) -> np.ndarray:
    """Tokens, int32 of shape (rows, row_length)."""
    rows = 4 * max(scale.main_batch, *scale.other_batches)
    return random_rows(PureConfig.from_preset(scale.preset).vocab_size, scale.row_length, rows)


class StockRows(Dataset):
    """The rows again and again, as transformers' default collator takes them."""

    def __init__(self, rows: np.ndarray):
        self.rows = torch.from_numpy(rows).long()

    def __len__(self) -> int:
        return 1000 * len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index % len(self.rows)]
        return {"input_ids": row, "labels": row}


# ---- results --------------------------------------------------------------------------------------------------------


def rows_of(setups: list[Setup], scale: Scale) -> list[dict]:
    """What is written: a row for every configuration that has been tried."""
    facts = {"device": device_name(), "versions": versions(), "command": "python -m benchmarks.gpu_pretrain"}
    if scale is TINY:
        facts["command"] += " --tiny"
    return [{**row_of(setup, scale), **facts} for setup in setups if setup.speeds or setup.failed]


def row_of(setup: Setup, scale: Scale) -> dict:
    """Speed, share of the device's peak, memory."""
    row = {"model": setup.model, "attention": setup.kernel, "rows": setup.batch, "row_length": scale.row_length}
    if setup.failed:
        return {**row, "failed": setup.failed}
    speed = statistics.median(setup.speeds)
    row |= {"tokens_per_second": round(speed), "stretches": len(setup.speeds)}
    if DEVICE == "cuda":
        row["peak_memory_gb"] = round(setup.peak_memory / 1e9, 2)
        if peak := peak_tflops(torch.cuda.get_device_name()):
            row |= {name: round(speed * flops / peak / 1e12, 4) for name, flops in flops_of(scale).items()}
    return row


def flops_of(scale: Scale) -> dict[str, int]:
    """FLOPs of training on a token, in both conventions."""
    config = PureConfig.from_preset(scale.preset)
    with torch.device("meta"):
        flops = model_flops(PureForCausalLM(config), scale.row_length)
    return {"mfu": flops, "mfu_causal": flops - 6 * config.num_hidden_layers * config.hidden_size * scale.row_length}


COLUMNS = ("model", "attention", "rows", "row_length", "tokens_per_second", "mfu", "mfu_causal", "peak_memory_gb")


def write_rows(rows: list[dict], path: Path, columns: tuple[str, ...] = COLUMNS) -> None:
    """The rows as JSON, and as a table of some of their columns."""
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    shown = [{"tokens_per_second": row.get("failed", ""), **row} for row in rows]
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in shown)]
    table = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    packages = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
    path.with_suffix(".md").write_text(f"{rows[0]['device']}, {packages}, `{rows[0]['command']}`\n\n{table}\n")


def summary(setups: list[Setup], scale: Scale) -> dict:
    """The line that is printed: ours, compiled, and the recipe of the beginning, each with its better kernel."""
    best = {}
    for model in (COMPILED, SEED_RECIPE):
        rows = [row_of(setup, scale) for setup in setups if (setup.model, setup.batch) == (model, scale.main_batch)]
        best[model] = max(rows, key=lambda row: row.get("tokens_per_second", 0))
    ours, peer = best[COMPILED].get("tokens_per_second"), best[SEED_RECIPE].get("tokens_per_second")
    return {
        "name": "gpu_pretrain",
        "unit": f"tokens per second at {scale.main_batch} x {scale.row_length} tokens",
        "ours": ours,
        "peer": peer,
        "peer_name": "HF Llama under the stock Trainer: bf16, adamw_torch_fused, gradient checkpointing",
        "ratio": round(ours / peer, 2) if ours and peer else None,
        "ours_row": best[COMPILED],
        "peer_row": best[SEED_RECIPE],
        "device": device_name(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The packages that took part."""
    return {module.__name__: module.__version__ for module in (torch, transformers)}


if __name__ == "__main__":
    main()
