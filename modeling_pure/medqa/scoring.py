"""Log-likelihoods of the four answer letters: what lm-evaluation-harness's `medqa_4options` scores, in fp32."""

from collections.abc import Callable, Iterable

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from .prompt import format_prompt
from .questions import LETTERS, Question


@torch.inference_mode()
def letter_log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    batch_size: int = 16,
    progress: Callable[[Iterable], Iterable] = iter,
) -> torch.Tensor:
    """Log-probabilities of " A".." D" as the next token after each question's prompt.

    Batches are sorted by length and padded on the right without a mask, which a causal model does not need: no real
    token sees a padded one. Logits are taken at the rows' last positions only. A prompt longer than the model's
    context is cut from the left, as lm-evaluation-harness does.

    Args:
        model: any causal language model; scores are exact in fp32 (in bf16 about 3 % of MedQA's questions tie).
        progress: wraps the loop over batches, e.g. `rich.progress.track`.

    Returns:
        float32 tensor of shape (len(questions), 4) on the CPU, in the order of `questions`.
    """
    if any(len(question.options) != len(LETTERS) for question in questions):
        raise ValueError(f"every question needs {len(LETTERS)} options")
    letter_ids = torch.tensor([single_token_id(tokenizer, f" {letter}") for letter in LETTERS], device=model.device)
    context = context_length(model.config, tokenizer)
    prompts = [tokenizer(format_prompt(question)).input_ids[-context:] for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    scores = torch.empty(len(prompts), 4)
    for start in progress(range(0, len(order), batch_size)):
        batch = order[start : start + batch_size]
        longest = len(prompts[batch[0]])
        input_ids = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, i in enumerate(batch):
            input_ids[row, : len(prompts[i])] = torch.tensor(prompts[i])
        last = torch.tensor([len(prompts[i]) - 1 for i in batch])
        logits = last_logits(model, input_ids.to(model.device), last.to(model.device))
        scores[batch] = logits.float().log_softmax(-1)[:, letter_ids].cpu()
    return scores


def last_logits(model: torch.nn.Module, input_ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Logits (batch, vocab) at each row's position `last` (batch,), of ids (batch, length) padded on the right."""
    positions, which = torch.unique(last, return_inverse=True)
    logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=positions).logits
    if logits.shape[1] != len(positions):
        raise InputError(f"model_name_or_path: {type(model).__name__} takes no notice of logits_to_keep")
    return logits[torch.arange(len(last), device=last.device), which]


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model can read at once; some have no bound but their tokenizer's."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length


def single_token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The id of a text that is one token; InputError where it is not."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise InputError(
            f"model_name_or_path: the tokenizer splits {text!r} into {len(ids)} tokens; each letter must be one token"
        )
    return ids[0]
