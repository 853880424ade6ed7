"""Validation during training: each source's loss in nats per token and bits per byte, and MedQA dev accuracy.

Means are over all sequences and ranks, not over batches.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from ..data.states import TokenSequence
from ..medqa.formats import taught_formats
from ..medqa.log_likelihood import letter_log_likelihoods, text_log_likelihoods
from ..medqa.metrics import compute_metrics
from ..medqa.questions import LETTERS, Question

Reduce = Callable[[torch.Tensor], torch.Tensor]  # the sum of a tensor over all ranks


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> np.ndarray | None:
    """Bytes of text of each token, int64 of shape (vocab_size,), 0 for special tokens; None if unknown.

    Known for byte-level BPE such as GPT-2's, where each character of a token's spelling is one byte.
    """
    backend = tokenizer.backend_tokenizer
    if type(backend.decoder).__name__ != "ByteLevel" or backend.normalizer is not None:
        return None
    sizes = np.zeros(vocab_size, dtype=np.int64)
    special = {*tokenizer.all_special_tokens, *(token.content for token in tokenizer.added_tokens_decoder.values())}
    for token, number in tokenizer.get_vocab().items():
        if token not in special:
            sizes[number] = len(token)
    return sizes


@torch.no_grad()
def sequence_nats(
    model: PreTrainedModel,
    batches: list[dict[str, torch.Tensor]],
    sizes: np.ndarray | None,
    rank: int,
    world_size: int,
    reduce: Reduce,
) -> torch.Tensor:
    """Nats of each sequence, over all tokens and over tokens of text: float64 of shape (sequences, 2), on the CPU.

    Args:
        batches: model inputs for all ranks, which divide them. Ranks run equally many forward passes, as sharded
            models require; surplus ones are not counted.
        sizes: from `token_bytes`; None = all tokens count as text.
    """
    first_rows = np.cumsum([0, *(len(batch["input_ids"]) for batch in batches)])
    nats = torch.zeros(first_rows[-1], 2, dtype=torch.float64, device=model.device)
    is_text = torch.from_numpy(sizes > 0).to(model.device) if sizes is not None else None
    shown = tqdm(range(0, len(batches), world_size), desc="validation", leave=False, disable=rank > 0 or None)
    for number in (start + rank for start in shown):
        batch = batches[min(number, len(batches) - 1)]
        inputs = {k: v.to(model.device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
        out = model(**inputs, reduction="none")
        if out.loss.dim():
            of_token = out.loss[:, :-1].double()
        else:  # another model class, which ignores `reduction`
            logits = out.logits[:, :-1].flatten(0, 1).float()
            of_token = F.cross_entropy(logits, inputs["labels"][:, 1:].flatten(), reduction="none")
            of_token = of_token.view(len(out.logits), -1).double()
        if number < len(batches):
            of_text = of_token if is_text is None else of_token * is_text[inputs["input_ids"][:, 1:]]
            place = slice(first_rows[number], first_rows[number + 1])
            nats[place] = torch.stack([of_token.sum(1), of_text.sum(1)], dim=1)
    return reduce(nats).cpu()


def loss_metrics(
    rows: list[TokenSequence[Any]], nats: torch.Tensor, mixture: list[str], sizes: np.ndarray | None
) -> dict[str, float]:
    """Validation metrics by their logged names.

    Args:
        nats: from `sequence_nats`.
        mixture: names of the training sources, over which `loss` is the mean. Every other source also gets the ratio
            of its perplexity to theirs.
        sizes: from `token_bytes`; None = no bits per byte.
    """
    names = list(dict.fromkeys(row["source"] for row in rows))
    of_source = {name: [i for i, row in enumerate(rows) if row["source"] == name] for name in names}
    inside = [i for name in names if name in mixture for i in of_source[name]]
    metrics = {}
    for suffix, which in [("", inside), *((f"/{name}", of_source[name]) for name in names)]:
        sums = nats[which].sum(0)
        metrics[f"loss{suffix}"] = sums[0].item() / sum(len(rows[i]["input_ids"]) - 1 for i in which)
        text = sum(int(sizes[rows[i]["input_ids"][1:]].sum()) for i in which) if sizes is not None else 0
        if text:
            metrics[f"bits_per_byte{suffix}"] = sums[1].item() / math.log(2) / text
    for name in names:
        if name not in mixture:
            metrics[f"perplexity_ratio/{name}"] = math.exp(metrics[f"loss/{name}"] - metrics["loss"])
    return metrics


def dev_metrics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    rank: int,
    world_size: int,
    reduce: Reduce,
) -> dict[str, float]:
    """`medqa_accuracy`, `medqa_standard_error` and `medqa_nll` from the letters' log-likelihoods in float32.

    The nll, over the four options, moves before the accuracy does. A model whose configuration states that it was
    taught to answer by text is also scored on the options' texts: `medqa_text_accuracy` and so on. The ranks divide
    the questions.
    """
    scorers = {"": letter_log_likelihoods}
    if {"text", "reasoned"} & {*taught_formats(model.config)}:  # a reasoned answer ends in a text
        scorers["text_"] = text_log_likelihoods
    mine = range(rank, len(questions), world_size)
    gold = np.array([question.answer for question in questions])
    metrics: dict[str, float] = {}
    for kind, log_likelihoods in scorers.items():
        scores = torch.zeros(len(questions), len(LETTERS), device=model.device)
        if mine:
            with exactly(model):
                scores[list(mine)] = log_likelihoods(model, tokenizer, [questions[i] for i in mine]).to(scores)
        measured = compute_metrics(EvalPrediction(reduce(scores).cpu().numpy(), gold))
        metrics |= {f"medqa_{kind}{name}": value for name, value in measured.items()}
    return metrics


@contextmanager
def exactly(model: PreTrainedModel) -> Iterator[None]:
    """Run in the model's own dtype, without accelerate's autocast around `forward`, and without compiling."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        with torch.autocast(model.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
