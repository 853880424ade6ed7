"""Scores completions, computing each group's prompt once, forward and backward, instead of once per completion.

The prompt's keys and values go into a cache, of which each completion of the group gets a copy. Autograd sums the
gradients of the copies, so that loss and gradients equal those of full sequences. G completions of C tokens after a
prompt of P tokens take P + G C tokens of computation instead of G (P + C).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..attention_pure import CACHE
from ..medqa.questions import Question
from ..training.saving import DurableTrainer
from ..training.validation import dev_metrics
from .fallbacks import row_hidden_states
from .log_probs import token_log_probs


@dataclass
class CompletionBatch:
    """Completions in TRL's layout: prompts padded on the left, completions on the right.

    Attributes:
        input_ids: shape (batch, prompt + completion). Adjacent rows with the same prompt share it.
        attention_mask: same shape, 0 for padding and tokens not to score.
        completion_length: number of completion columns.
        sampling_mask: the tokens that could be sampled, as bits (`sampling.pack_bits`) of shape (batch, completion,
            ceil(vocab / 8)); None = all tokens.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_length: int
    sampling_mask: torch.Tensor | None = None

    def split(self, size: int | None) -> Iterator["CompletionBatch"]:
        """Split into batches of at most `size` rows; None = do not split."""
        for start in range(0, len(self.input_ids), size or len(self.input_ids)):
            rows = slice(start, start + (size or len(self.input_ids)))
            mask = None if self.sampling_mask is None else self.sampling_mask[rows]
            yield CompletionBatch(self.input_ids[rows], self.attention_mask[rows], self.completion_length, mask)


class Scores(NamedTuple):
    """Nats of each completion token, float32 of shape (batch, completion), 0 where the attention mask is 0."""

    log_probs: torch.Tensor
    entropy: torch.Tensor


class Scorer(nn.Module):
    """Computes log-probabilities of completions with a causal language model, with or without adapters.

    In training, DDP, autocast and compile wrap this module instead of the model, which stays unchanged.

    Args:
        fp32_head: compute the logits in float32.
        share_prefix: compute a group's prompt once; requires a model that `support.shared_prefix_obstacle` accepts.
    """

    def __init__(self, model: nn.Module, temperature: float, fp32_head: bool, share_prefix: bool) -> None:
        super().__init__()
        self.model = model
        self.temperature, self.fp32_head, self.share_prefix = temperature, fp32_head, share_prefix

    def forward(self, batch: CompletionBatch) -> Scores:
        """Score the completions of a batch."""
        model = causal_lm(self.model)
        split = batch.input_ids.shape[1] - batch.completion_length
        prompts, completions = batch.input_ids.tensor_split([split], 1)
        prompt_mask, scored = batch.attention_mask.bool().tensor_split([split], 1)
        # The columns in use; at least one, so that a batch without tokens to score has a gradient of 0.
        longest = max(1, int(scored.sum(1).max()))
        completions, scored = completions[:, :longest], scored[:, :longest]
        aligned, lengths = left_aligned(prompts, prompt_mask)
        if self.share_prefix:
            of_group = group_rows(prompts, prompt_mask)
            hidden = shared_hidden_states(model, aligned, lengths, of_group, completions, scored)
        else:
            hidden = row_hidden_states(model, aligned, lengths, completions, scored)
        log_probs, entropy = token_log_probs(
            cast(nn.Linear, model.get_output_embeddings()),
            hidden[scored],
            completions[scored],
            None if batch.sampling_mask is None else batch.sampling_mask[:, :longest][scored],
            self.temperature,
            self.fp32_head,
        )
        where = nn.functional.pad(scored, (0, batch.completion_length - longest))
        empty = log_probs.new_zeros(where.shape)
        return Scores(empty.masked_scatter(where, log_probs), empty.masked_scatter(where, entropy))


class ScoringTrainer(DurableTrainer):
    """A trainer that trains a model through its scorer, and evaluates dev questions.

    Attributes:
        scorers: model -> its scorer; empty if the model's own forward pass is trained.
        questions: MedQA dev questions to answer at each evaluation.
    """

    scorers: dict[nn.Module, Scorer]
    questions: list[Question]

    @property
    def base_causal_lm(self) -> PreTrainedModel:
        """The causal language model inside any PEFT wrapper."""
        return causal_lm(self.model)

    def dev_metrics(self, tokenizer: PreTrainedTokenizerBase, prefix: str) -> dict[str, float]:
        """Dev accuracies by letter or text (`validation.dev_metrics`), which involve no reward."""
        ranks = self.args.process_index, self.args.world_size, self.accelerator.reduce
        measured = dev_metrics(self.base_causal_lm, tokenizer, self.questions, *ranks)
        return {f"{prefix}_{name}": value for name, value in measured.items()}

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """Let DDP, autocast and compile wrap the scorer: DDP only averages gradients of what its `forward` ran."""
        scorer = self.scorers.get(model)
        if scorer is None:  # already wrapped, or the model's own forward pass is trained
            return super()._wrap_model(model, training, dataloader)
        return cast(nn.Module, self.accelerator.prepare_model(scorer)) if training else scorer


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside any PEFT wrapper."""
    adapted: Any = model
    return cast(PreTrainedModel, adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted)


def group_rows(prompts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each row's group number, shape (rows,); adjacent rows with the same prompt are a group."""
    return prompts.masked_fill(mask == 0, -1).unique_consecutive(return_inverse=True, dim=0)[1]


def deal_groups(rollout: dict[str, Any], updates: int) -> dict[str, Any]:
    """Reorder a rollout by update: each update takes every `updates`-th group, as a whole.

    An update has the same groups on any number of processes, as long as each process has the same number of groups for
    every update.
    """
    groups = group_rows(rollout["prompt_ids"], rollout["prompt_mask"])
    order = (groups % updates).argsort(stable=True)
    return {
        name: value[order.to(value.device)] if torch.is_tensor(value) and value.dim() else value
        for name, value in rollout.items()
    }


def left_aligned(prompts: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the padding of prompts (rows, length) to the right, where no token attends to it; also their lengths."""
    lengths = mask.sum(1)
    places = torch.arange(int(lengths.max()), device=prompts.device) + (prompts.shape[1] - lengths)[:, None]
    return prompts.gather(1, places.clamp(max=prompts.shape[1] - 1)), lengths


def shared_hidden_states(
    model: PreTrainedModel,
    prompts: torch.Tensor,
    lengths: torch.Tensor,
    of_group: torch.Tensor,
    completions: torch.Tensor,
    scored: torch.Tensor,
) -> torch.Tensor:
    """The hidden states that predict each completion's tokens, shape (batch, completion, hidden)."""
    first = torch.cat([of_group.new_ones(1), of_group.diff()]).bool()
    prompts, of_prompts = prompts[first], lengths[first]
    cache = DynamicCache(config=model.config)
    hidden = model.base_model(input_ids=prompts, **{CACHE: cache}, use_cache=True).last_hidden_state
    last = hidden[torch.arange(len(prompts), device=prompts.device), of_prompts - 1][of_group, None]
    if completions.shape[1] == 1:
        return last
    cache.batch_select_indices(of_group)
    columns = torch.arange(prompts.shape[1], device=prompts.device)
    hidden = model.base_model(
        input_ids=completions[:, :-1],
        attention_mask=torch.cat([columns < lengths[:, None], scored[:, :-1]], 1),
        position_ids=lengths[:, None] + torch.arange(completions.shape[1] - 1, device=prompts.device),
        use_cache=True,
        **{CACHE: cache},
    ).last_hidden_state
    return torch.cat([last, hidden], 1)
