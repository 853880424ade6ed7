"""Log-likelihoods of answers in fp32: of labels as the next token, as lm-evaluation-harness scores, and of texts.

A question takes one forward pass, and the head is applied to the last positions of a batch only. Sorting by length
keeps these positions few. Padding is on the right and needs no mask: in a causal model no real token attends to it.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..tokenizer import prompt_ids, text_ids
from .formats import format_prompt, text_continuation
from .questions import LETTERS, Question


def letter_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], batch_size: int = 16
) -> torch.Tensor:
    """Log-probabilities of " A".." D" as the next token after each MedQA question's prompt.

    Prompts longer than the model's context are truncated on the left, as in lm-evaluation-harness. The model should be
    in fp32: in bf16 about 3 % of MedQA's questions tie.

    Returns:
        float32 tensor of shape (len(questions), 4) on the CPU.
    """

    def score(prompts: list[str], batch: list[Question]) -> torch.Tensor:
        return label_log_likelihoods(model, tokenizer, prompts, LETTERS)

    return in_batches(tokenizer, questions, batch_size, score)


def text_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], batch_size: int = 16
) -> torch.Tensor:
    """Log-probabilities of each option's text, as the format `text` writes it, after each MedQA question's prompt.

    The scored text ends where the letter would follow, as in ` Nitrofurantoin (`, so that an option that begins
    another option has no advantage. Arguments and result are those of `letter_log_likelihoods`.
    """

    def score(prompts: list[str], batch: list[Question]) -> torch.Tensor:
        texts = [[text_continuation(option) for option in question.options] for question in batch]
        return torch.tensor([one.sums for one in continuation_log_likelihoods(model, tokenizer, prompts, texts)])

    return in_batches(tokenizer, questions, max(1, batch_size // len(LETTERS)), score)


def in_batches(
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    batch_size: int,
    score: Callable[[list[str], list[Question]], torch.Tensor],
) -> torch.Tensor:
    """Scores (questions, 4) of MedQA questions in batches; ValueError if one does not have four options."""
    if any(len(question.options) != len(LETTERS) for question in questions):
        raise ValueError(f"every question needs {len(LETTERS)} options")
    prompts = [format_prompt(question) for question in questions]
    scores = torch.empty(len(prompts), len(LETTERS))
    for batch in sorted_batches(list(map(len, prompt_ids(tokenizer, prompts))), batch_size):
        scores[batch] = score([prompts[i] for i in batch], [questions[i] for i in batch])
    return scores


@dataclass(frozen=True)
class Continuations:
    """Continuations of a context: log-likelihoods in nats, lengths in tokens, whether the context was truncated."""

    sums: list[float]
    lengths: list[int]
    cut: bool


@torch.inference_mode()
def continuation_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contexts: list[str], continuations: list[list[str]]
) -> list[Continuations]:
    """Score the continuations of each context; what is too long is truncated on the left."""
    limit = context_length(model.config, tokenizer)
    texts = [context + text for context, own in zip(contexts, continuations, strict=True) for text in own]
    whole = prompt_ids(tokenizer, texts)
    starts = [ids for ids, own in zip(prompt_ids(tokenizer, contexts), continuations, strict=True) for _ in own]
    rows = [ids[-limit - 1 :] for ids in whole]  # the last token is predicted, not read
    lengths = [
        min(max(1, len(ids) - len(start)), len(row) - 1) for ids, start, row in zip(whole, starts, rows, strict=True)
    ]
    input_ids, sizes = pad_right([row[:-1] for row in rows])
    first = sizes - torch.tensor(lengths)  # the position before a continuation's first token
    positions = torch.arange(int(first.min()), int(sizes.max()))
    log_probs = logits_at(model, input_ids.to(model.device), positions.to(model.device)).float().log_softmax(-1)
    sums = []
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        begin = int(first[i] - positions[0])
        targets = torch.tensor(row[-length:], device=log_probs.device)
        sums.append(log_probs[i, begin : begin + length].gather(1, targets[:, None]).sum().item())
    ends = itertools.accumulate(map(len, continuations))
    parts = [slice(end - len(own), end) for end, own in zip(ends, continuations, strict=True)]
    return [Continuations(sums[p], lengths[p], any(len(ids) > limit + 1 for ids in whole[p])) for p in parts]


@torch.inference_mode()
def label_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], labels: Sequence[str]
) -> torch.Tensor:
    """Log-likelihoods of labels, each with a leading space, after prompts: float32 (prompts, labels) on the CPU.

    Single-token labels, such as GPT-2's, take one forward pass a prompt; if the tokenizer splits a label, each takes
    its own. Prompts longer than the model's context are truncated on the left.
    """
    texts = [f" {label}" for label in labels]
    label_ids = text_ids(tokenizer, texts)
    if any(len(ids) != 1 for ids in label_ids):
        scored = continuation_log_likelihoods(model, tokenizer, prompts, [texts] * len(prompts))
        return torch.tensor([one.sums for one in scored])
    context = context_length(model.config, tokenizer)
    input_ids, lengths = pad_right([ids[-context:] for ids in prompt_ids(tokenizer, prompts)])
    positions, which = torch.unique((lengths - 1).to(model.device), return_inverse=True)
    logits = logits_at(model, input_ids.to(model.device), positions)
    last = logits[torch.arange(len(which), device=which.device), which]
    return last.float().log_softmax(-1)[:, [ids[0] for ids in label_ids]].cpu()


def sorted_batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, so that running out of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad_right(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (rows, longest), padded with 0, and the rows' lengths (rows,)."""
    return pad_sequence([torch.tensor(row) for row in rows], True), torch.tensor([len(row) for row in rows])


def logits_at(model: torch.nn.Module, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Logits (batch, positions, vocab) at some positions; `InputError` if the model ignores `logits_to_keep`."""
    logits: torch.Tensor = model(input_ids=input_ids, use_cache=False, logits_to_keep=positions).logits
    if logits.shape[1] != len(positions):
        raise InputError(f"model_name_or_path: {type(model).__name__} ignores logits_to_keep")
    return logits


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The model's context in tokens; for some models only the tokenizer limits it."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
