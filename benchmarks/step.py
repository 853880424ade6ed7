"""A training step of `PureTrainer`, compared with HF Llama in the stock Trainer: tokens per second.

    python -m benchmarks.step [--rounds 3]

Same shape, same tokens per step, float32, nothing compiled, no recomputation. The two alternate, one training each per
round; figures are medians over all timed steps. On a CPU at this size the head dominates, and ours is slowed by the
chunks of its loss, which save memory and are meant to be compiled. For a GPU see `python -m benchmarks.gpu`.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from sys import stderr
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from benchmarks.measure import DEVICE, median_ratio, print_line
from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.doctor.model import RandomSequences
from modeling_pure.training.arguments import PureTrainingArguments
from modeling_pure.training.trainer import PureTrainer

OURS, LLAMA = "ours", "HF Llama"


@dataclass(frozen=True)
class Scale:
    """A preset, and a step of `sequences` x `length` tokens."""

    preset: str = "medium-large"
    sequences: int = 16
    length: int = 2048
    warm_up: int = 3
    steps: int = 25

    @property
    def config(self) -> PureConfig:
        """The model's configuration."""
        return PureConfig.from_preset(self.preset)


SMALL = Scale("small", 4, 256, warm_up=2, steps=4)
TINY = Scale("tiny", 2, 64, warm_up=1, steps=2)


def main() -> None:
    """Train both alternately, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each side")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the code")
    options = parser.parse_args()
    scale = TINY if options.tiny else SMALL
    speeds: dict[str, list[float]] = {OURS: [], LLAMA: []}
    with redirect_stdout(stderr):
        for _ in range(options.rounds):
            for model, found in speeds.items():
                found += [scale.sequences * scale.length / taken for taken in train(model, scale, bf16=False)[1]]
    print_line(
        "step",
        f"tokens per second of training, preset {scale.preset}, {scale.sequences} x {scale.length} tokens",
        round(statistics.median(speeds[OURS])),
        round(statistics.median(speeds[LLAMA])),
        "LlamaForCausalLM of the same shape under the stock Trainer",
        median_ratio(speeds[OURS], speeds[LLAMA]),
        rounds=options.rounds,
    )


def train(model: str, scale: Scale, document_mask: bool = False, **arguments: Any) -> tuple[Trainer, list[float]]:
    """Train on random tokens; returns the trainer and the seconds of each step after the warm-up."""
    clock = StepClock(scale.warm_up)
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"max_steps": scale.warm_up + scale.steps, **arguments}
        trainer = build_trainer(model, scale, folder, document_mask=document_mask, **arguments)
        trainer.add_callback(clock)
        trainer.train()
    return trainer, clock.seconds()


def build_trainer(model: str, scale: Scale, folder: str, document_mask: bool = False, **arguments: Any) -> Trainer:
    """`PureTrainer` as train_pretrain.py builds it, or the stock Trainer with HF Llama; both with AdamW, fused."""
    given = {
        "output_dir": folder,
        "per_device_train_batch_size": scale.sequences,
        "bf16": True,
        "use_cpu": DEVICE == "cpu",
        "optim": "adamw_torch_fused",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        **arguments,
    }
    data = RandomSequences(scale.config.vocab_size, scale.length, 4 * scale.sequences)
    net = build_model(model, scale.config)
    if model == LLAMA:
        examples = [{"input_ids": row, "labels": row} for row in torch.from_numpy(data.tokens).long()]
        return Trainer(net, TrainingArguments(**given), train_dataset=1000 * examples)  # repeated, as in ours
    settings = PureTrainingArguments(**{"compile_layers": False, **given})
    return PureTrainer(net, settings, train_dataset=data, document_mask=document_mask)


def build_model(model: str, config: PureConfig) -> PreTrainedModel:
    """Ours, or a Llama of the same shape, on the device."""
    if model == OURS:
        with torch.device(DEVICE):
            return PureForCausalLM(config)
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
    heads = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "bos_token_id", "eos_token_id")
    fields = {field: getattr(config, field) for field in (*shared, *heads)}
    with torch.device(DEVICE):  # without a cache, as in Trainer
        return LlamaForCausalLM(LlamaConfig(**fields, tie_word_embeddings=False, use_cache=False))


class StepClock(TrainerCallback):
    """Measures seconds per optimizer step after a warm-up; on a GPU with events, which do not synchronise."""

    def __init__(self, warm_up: int):
        self.warm_up, self.marks = warm_up, []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Called after the optimizer's step."""
        if state.global_step < self.warm_up:
            return
        if DEVICE == "cuda":
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds, one number per step."""
        if DEVICE == "cuda":
            torch.cuda.synchronize()
            return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(self.marks)]
        return [end - begin for begin, end in pairwise(self.marks)]


if __name__ == "__main__":
    main()
