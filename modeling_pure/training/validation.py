"""Validation: the loss of each source in nats per token and bits per byte, and MedQA dev accuracy while training.

Means are over all sequences and ranks, never means of the means of batches.
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
    """Bytes of text of each token, int64 of shape (vocab_size,), 0 for special tokens; None if they are not known.

    They are known for a byte-level BPE such as GPT-2's, where each letter of a token's spelling is one byte.
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
    """Nats of each sequence, over all its tokens and over tokens of text; float64 (sequences, 2) on the CPU.

    Args:
        batches: of all ranks, with the inputs of the model. The ranks divide them and run equally many forward passes,
            as sharded models must; a surplus one is not counted.
        sizes: from `token_bytes`; without them, all tokens count as text.
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
        else:  # another class, which ignores `reduction`
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
    """The metrics of a validation, by name as they are logged.

    Args:
        rows: sequences with the name of their `source`.
        nats: from `sequence_nats`.
        mixture: names of the sources that are trained on; `loss` is their joint loss, in the mixture's proportions.
            Every other source also gets the ratio of its perplexity to theirs.
        sizes: from `token_bytes`; without them there are no bits per byte.
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
    """`medqa_accuracy`, `medqa_standard_error` and `medqa_nll` of the letters' log-likelihoods, scored in float32.

    If its configuration says that the model was taught to answer by text, the options' texts are scored too:
    `medqa_text_accuracy` and so on. The ranks divide the questions. The nll, over the four options, moves before the
    accuracy does.
    """
    scorers = {"": letter_log_likelihoods}
    if {"text", "reasoned"} & {*taught_formats(model.config)}:  # reasons end in a text, too
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


def metrics_in_words(metrics: dict[str, float]) -> dict[str, str]:
    """The metrics of single sources and of MedQA, for the report of a run."""
    facts = {}
    for name in [name.removeprefix("eval_loss/") for name in metrics if name.startswith("eval_loss/")]:
        facts[f"  {name}"] = f"{metrics[f'eval_loss/{name}']:.4f}"
        if bits := metrics.get(f"eval_bits_per_byte/{name}"):
            facts[f"  {name}"] += f", {bits:.4f} bits per byte"
        if ratio := metrics.get(f"eval_perplexity_ratio/{name}"):
            facts[f"  {name}"] += f"; outside the mixture, {ratio:.2f} times its perplexity"
    if "eval_medqa_accuracy" in metrics:
        facts["MedQA dev accuracy (chance 25 %)"] = f"{metrics['eval_medqa_accuracy']:.1%}"
    if "eval_medqa_text_accuracy" in metrics:
        facts["MedQA dev accuracy by text"] = f"{metrics['eval_medqa_text_accuracy']:.1%}"
    return facts


@contextmanager
def exactly(model: PreTrainedModel) -> Iterator[None]:
    """Run without autocast, which accelerate wraps around `forward`, and without compiling for every length."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        with torch.autocast(model.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
