"""Checks of the model: its size, a forward pass, and training steps."""

import gc
import io
import math
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch
from rich.filesize import decimal
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from ..data.states import Progress, TokenSequence, TrainingData
from ..modeling_pure import PureForCausalLM
from ..training.arguments import PureTrainingArguments
from ..training.trainer import PureTrainer
from .context import FAIL, WARN, Context, Finding, Skip
from .machine import LONG_RUN

FULL_SIZE = 401_227_776
CPU_FLOPS, GPU_FLOPS = 1e12, 1e15  # that either device does in seconds
MIN_STEPS, MAX_STEPS = 2, 50  # to warm up, and to measure
SMALL_LENGTH = 128
LOSS_TOLERANCE = 0.5  # nats
HEADROOM = 1.25  # times the estimated memory of a micro-batch


def check_model(context: Context) -> Finding | str:
    """Whether the model can be built and has the size of its preset; no weights are allocated."""
    count, config, preset = context.parameters, context.config, context.model.preset
    found = f"{count:,} parameters ({preset}): {config.num_hidden_layers} layers, {config.hidden_size} wide"
    if preset == "medium-large" and not context.model.model_overrides and count != FULL_SIZE:
        return Finding(FAIL, f"{found}, expected {FULL_SIZE:,}", "restore modeling_pure.py and the presets")
    return found


def check_forward(context: Context) -> Finding | str:
    """Whether a new model has the loss of uniform predictions, and how much memory the forward pass takes."""
    device, config = context.training.device, context.config
    batch_size, length, size = measured_size(context)
    require_memory(context, 4 * context.parameters)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(context.training.seed)
    with torch.device(device):
        model = PureForCausalLM(config).train()
        ids = torch.randint(config.vocab_size, (batch_size, length))
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bool(context.training.bf16)):
        loss = model(input_ids=ids, labels=ids, skip_logits=True).loss.item()
    # Random logits add half their variance to the loss of uniform predictions.
    expected = math.log(config.vocab_size) + config.head_initializer_range**2 * config.hidden_size / 2
    found = f"{size}: loss {loss:.2f}, expected {expected:.2f} of an untrained model"
    if device.type == "cuda":
        found += f"; peak {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB, without gradients"
    if not abs(loss - expected) < LOSS_TOLERANCE:
        return Finding(FAIL, found, "use another torch or driver; for details run pytest tests/model")
    return found


def check_throughput(context: Context) -> Finding | str:
    """The speed of the run's own trainer on random tokens, and the time that the run takes."""
    if context.quick:
        raise Skip("not measured: --quick", "omit --quick")
    batch_size, length, size = measured_size(context)
    gc.collect()  # frees the memory of the forward pass
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        args = measured_arguments(context, batch_size, length, folder)
        require_memory(context, context.memory(args, length)[0])
        with torch.device(args.device):
            model = PureForCausalLM(context.config)
        data = RandomSequences(context.config.vocab_size, length, batch_size)
        trainer = PureTrainer(model, args, train_dataset=data, document_mask=context.data.document_mask)
        trainer.remove_callback(trainer.stop_on_signal)  # Ctrl-C stops at once, since there is nothing to save
        with redirect_stdout(io.StringIO()):
            trainer.train()
    if (fitted := trainer.micro_batch_size) < batch_size:
        found = f"{size}: out of memory, reduced to a micro-batch of {fitted}, as the run would"
        return Finding(WARN, found, "--gradient_checkpointing true, or a smaller --per_device_train_batch_size")
    return judge_speed(context, [line for line in trainer.state.log_history if "tokens_per_second" in line][-1], size)


def measured_arguments(context: Context, batch_size: int, length: int, folder: str) -> PureTrainingArguments:
    """The recipe's arguments for as many steps to warm up as to measure, without output."""
    args = context.training
    accumulation = context.plan.accumulation if (batch_size, length) == context.size else 1
    flops = GPU_FLOPS if args.device.type == "cuda" else CPU_FLOPS
    steps = min(MAX_STEPS, max(MIN_STEPS, int(flops / (accumulation * batch_size * length * context.flops))))
    return replace(
        args,
        output_dir=folder,
        max_steps=2 * steps,
        tokens_per_step=None,
        logging_steps=steps,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        dataloader_num_workers=0,
        logging_first_step=False,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        report_to=["none"],
        push_to_hub=False,
        resume_from_checkpoint=None,
        disable_tqdm=True,
    )


def judge_speed(context: Context, line: dict[str, float], size: str) -> Finding | str:
    """What a log line of the trainer means for the whole run."""
    seconds = context.tokens / line["tokens_per_second"]
    found = f"{size}: {line['tokens_per_second']:,.0f} tokens/s"
    found += f", {line['mfu']:.1%} MFU" if "mfu" in line else ""
    found += f", peak {line['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in line else ""
    found += f"; {context.tokens:,} tokens would take {seconds / 3600:,.1f} h (without data, validation, checkpoints)"
    if seconds > LONG_RUN:
        return Finding(WARN, found, "use a faster or idle GPU (nvidia-smi), or fewer max_steps")
    return found


def measured_size(context: Context) -> tuple[int, int, str]:
    """The batch to measure, also as text: the recipe's, or one short sequence if a CPU would take minutes."""
    device, (batch_size, length), note = context.training.device.type, context.size, ""
    if device != "cuda" and context.plan.sequences_per_step * length * context.flops > CPU_FLOPS:
        note = f" (the run: {batch_size} x {length})"
        batch_size, length = 1, min(SMALL_LENGTH, length)
    return batch_size, length, f"{batch_size} x {length} tokens on the {device}{note}"


def require_memory(context: Context, needed: float) -> None:
    """Raise `Skip` if this machine has neither a GPU nor `needed` bytes of memory with some headroom."""
    free = psutil.virtual_memory().available
    if context.training.device.type != "cuda" and HEADROOM * needed >= free:
        found = f"takes {decimal(int(HEADROOM * needed))} of memory, {decimal(free)} are free"
        raise Skip(found, "use a machine with a GPU")


class RandomSequences(TrainingData[Any]):
    """The same random sequences repeated forever, with documents of some hundred tokens."""

    def __init__(self, vocab_size: int, sequence_length: int, count: int) -> None:
        self.sources, self.names, self.position, self.first_worker = [], [], {}, 0
        generator, shape = np.random.default_rng(0), (count, sequence_length)
        self.tokens = generator.integers(1, vocab_size, shape, dtype=np.int32)  # (count, sequence_length)
        self.tokens[generator.random(shape) < 1 / 600] = 0
        self.sequence_length = sequence_length
        words = Tokenizer(WordLevel({"<end>": 0}, unk_token="<end>"))
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")

    def __iter__(self) -> Iterator[TokenSequence[Any]]:
        while True:
            for tokens in self.tokens:
                yield {"input_ids": tokens, "source": "random", "data_state": {"worker": 0}}

    def progress(self, states: list[Any]) -> dict[str, Progress]:
        """Empty: there are no sources."""
        return {}
