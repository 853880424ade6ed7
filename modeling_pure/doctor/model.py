"""Checks of the model: its size, a forward pass, some steps of training."""

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
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from ..data.states import Progress, TokenSequence, TrainingData
from ..errors import InputError, RunStopped, first_line
from ..modeling_pure import PureForCausalLM
from ..training.arguments import PureTrainingArguments
from ..training.trainer import PureTrainer
from .context import FAIL, PASS, SKIPPED, WARN, Context, Finding
from .machine import LONG_RUN, in_bytes

FULL_SIZE = 401_227_776
CPU_FLOPS, GPU_FLOPS = 1e12, 1e15  # of a stretch of steps that each takes in seconds
STEPS = (2, 50)  # of a stretch, at least and at most
SMALL_LENGTH = 128
LOSS_TOLERANCE = 0.5  # nats
HEADROOM = 1.25  # of what a pass takes by arithmetic
NOT_RUN = "for memory: see GPU above; else another torch or driver"


def check_model(context: Context) -> Finding:
    """Whether the model can be built, and is the size that it is called by; without its weights."""
    count, config, preset = context.parameters, context.config, context.model.preset
    found = f"{count:,} parameters ({preset}): {config.num_hidden_layers} layers, {config.hidden_size} wide"
    if preset == "medium-large" and not context.model.model_overrides and count != FULL_SIZE:
        return Finding(FAIL, f"{found}, expected {FULL_SIZE:,}", "put modeling_pure.py and the presets back")
    return Finding(PASS, found)


def check_forward(context: Context) -> Finding:
    """Whether a fresh model has the loss of one that knows nothing, and the memory that the pass takes."""
    device, size = context.training.device, size_in_words(context)
    if skipped := too_large(context, HEADROOM * 4 * context.parameters):
        return skipped
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        loss = first_loss(context, *measured_size(context))
    except RuntimeError as error:  # out of memory, and what a GPU's kernels raise
        return Finding(FAIL, f"{size}: {first_line(error)}", NOT_RUN)
    expected = fresh_loss(context)
    found = f"{size}: loss {loss:.2f}, a model that knows nothing has {expected:.2f}"
    if device.type == "cuda":
        found += f"; peak {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB, without gradients"
    if not abs(loss - expected) < LOSS_TOLERANCE:
        return Finding(FAIL, found, "another torch or driver; the tests say more: pytest tests/model")
    return Finding(PASS, found)


def first_loss(context: Context, rows: int, length: int) -> float:
    """The loss of the recipe's model with its first weights, on random tokens."""
    device = context.training.device
    torch.manual_seed(context.training.seed)
    with torch.device(device):
        model = PureForCausalLM(context.config).train()
        ids = torch.randint(context.config.vocab_size, (rows, length))
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bool(context.training.bf16)):
        loss = model(input_ids=ids, labels=ids, skip_logits=True).loss.item()
    del model
    free_memory()
    return loss


def fresh_loss(context: Context) -> float:
    """ln(vocabulary), and what logits cost that vary without knowing anything: half their variance."""
    config = context.config
    return math.log(config.vocab_size) + config.head_initializer_range**2 * config.hidden_size / 2


def check_throughput(context: Context) -> Finding:
    """How fast some steps of training are by the trainer of the run, and so how long the run is."""
    if context.quick:
        return Finding(SKIPPED, "not measured: --quick", "leave --quick out")
    (rows, length), size = measured_size(context), size_in_words(context)
    try:
        with tempfile.TemporaryDirectory() as folder:
            args = measured_arguments(context, rows, length, folder)
            if skipped := too_large(context, HEADROOM * context.memory(args, length)[0]):
                return skipped
            line, rows_left = measured_steps(context, args, length)
    except (RunStopped, RuntimeError) as error:
        return Finding(FAIL, f"{size}: {first_line(error)}", NOT_RUN)
    except (InputError, ValueError, TypeError, ImportError) as error:  # what the trainer refuses of a recipe
        return Finding(FAIL, first_line(error), "the recipe's key that the line is about")
    finally:
        free_memory()
    if rows_left < rows:
        found = f"{size}: out of memory, and so with {rows_left} rows in a pass; the run would do the same"
        return Finding(WARN, found, "--gradient_checkpointing true, or fewer rows in more passes")
    return judge_speed(context, line, size)


def measured_steps(context: Context, args: PureTrainingArguments, length: int) -> tuple[dict[str, float], int]:
    """The last log line of a short training on random tokens, and how many rows of a pass fitted into memory."""
    dataset = RandomRows(random_rows(context.config.vocab_size, length, args.per_device_train_batch_size))
    with torch.device(args.device):
        model = PureForCausalLM(context.config)
    trainer = PureTrainer(model, args, train_dataset=dataset, document_mask=context.data.document_mask)
    trainer.remove_callback(trainer.stop_on_signal)  # Ctrl-C ends this at once: there is nothing to save
    with redirect_stdout(io.StringIO()):
        trainer.train()
    return [line for line in trainer.state.log_history if "tokens_per_second" in line][-1], trainer.micro_batch_size


def measured_arguments(context: Context, rows: int, length: int, folder: str) -> PureTrainingArguments:
    """The recipe's arguments for two stretches of steps, the first to warm up, which leave nothing behind."""
    args = context.training
    passes = 1 if (rows, length) != context.size else context.plan.accumulation
    seconds_of_work = GPU_FLOPS if args.device.type == "cuda" else CPU_FLOPS
    fewest, most = STEPS
    stretch = min(most, max(fewest, int(seconds_of_work / (passes * rows * length * context.flops))))
    return replace(
        args,
        output_dir=folder,
        max_steps=2 * stretch,
        tokens_per_step=None,
        logging_steps=stretch,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=passes,
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


def judge_speed(context: Context, line: dict[str, float], size: str) -> Finding:
    """What a log line means for the whole run."""
    seconds = context.tokens / line["tokens_per_second"]
    found = f"{size}: {line['tokens_per_second']:,.0f} tokens/s"
    found += f", {line['mfu']:.1%} MFU" if "mfu" in line else ""
    found += f", peak {line['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in line else ""
    found += f"; {context.tokens:,} tokens would take {seconds / 3600:,.1f} h (data, validation, checkpoints aside)"
    if seconds > LONG_RUN:
        return Finding(WARN, found, "a faster GPU, with nothing else on it (nvidia-smi), or fewer max_steps")
    return Finding(PASS, found)


def measured_size(context: Context) -> tuple[int, int]:
    """Rows and their length: the recipe's, or one short row where a processor would take minutes for a step."""
    work = context.plan.sequences_per_step * context.data.max_seq_length * context.flops
    if context.training.device.type != "cuda" and work > CPU_FLOPS:
        return 1, min(SMALL_LENGTH, context.data.max_seq_length)
    return context.size


def size_in_words(context: Context) -> str:
    """What is measured, and whether the run has another size."""
    rows, length = measured_size(context)
    whole = "" if (rows, length) == context.size else " (the run: {} x {})".format(*context.size)
    return f"{rows} x {length} tokens on the {context.training.device.type}{whole}"


def too_large(context: Context, needed: float) -> Finding | None:
    """That a check is skipped, where the memory of a machine without a GPU does not hold the model."""
    there = psutil.virtual_memory().available
    if context.training.device.type == "cuda" or needed < there:
        return None
    return Finding(SKIPPED, f"takes {in_bytes(needed)} of memory, {in_bytes(there)} are free", "a machine with a GPU")


def free_memory() -> None:
    """Give back what a check has used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def random_rows(vocab_size: int, sequence_length: int, rows: int) -> np.ndarray:
    """Tokens at random, in documents of some hundred."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, vocab_size, (rows, sequence_length), dtype=np.int32)
    return np.where(generator.random((rows, sequence_length)) < 1 / 600, 0, tokens).astype(np.int32)


class RandomRows(TrainingData[Any]):
    """The same rows again and again, whose position does not matter."""

    def __init__(self, rows: np.ndarray) -> None:
        self.sources, self.names, self.position, self.first_worker = [], [], {}, 0
        self.rows, self.sequence_length = rows, rows.shape[1]
        words = Tokenizer(WordLevel({"<end>": 0}, unk_token="<end>"))
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")

    def __iter__(self) -> Iterator[TokenSequence[Any]]:
        while True:
            for row in self.rows:
                yield {"input_ids": row, "source": "random", "data_state": {"worker": 0}}

    def progress(self, states: list[Any]) -> dict[str, Progress]:
        """No source, so none has got anywhere."""
        return {}
