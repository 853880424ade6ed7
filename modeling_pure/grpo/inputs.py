"""Rows given from Python: what cannot be trained on is refused before the first step, what is doubtful is counted."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..medqa.log_likelihood import context_length
from ..medqa.rewards import AnswerReward
from .prompts import say

if TYPE_CHECKING:
    from .trainer import PureGRPOTrainer

AT_ONCE = 1000  # prompts that are tokenized together


def check_training_rows(trainer: "PureGRPOTrainer") -> None:
    """Check the rows of a data set that has an end; a stream is checked as its prompts come.

    Raises:
        InputError: a prompt is empty or fills the context, or the MedQA rewards cannot read the answers.
    """
    rows = trainer.train_dataset
    if not isinstance(rows, Dataset) or trainer.left_to_trl:
        return
    for reward in trainer.reward_funcs:
        if isinstance(reward, AnswerReward):
            reward.check(rows)
    longest = context_length(trainer.base_causal_lm.config, trainer._tokenizer) - trainer.args.max_completion_length
    cut_short = 0
    for start in range(0, len(rows), AT_ONCE):
        prompt_ids, _, _ = trainer._tokenize_prompts(rows[start : start + AT_ONCE]["prompt"])
        cut_short += sum(len(ids) > longest for ids in prompt_ids)
    if cut_short:
        found = f"{cut_short} of {len(rows)} prompts leave less than {trainer.args.max_completion_length} tokens of it"
        if has_position_table(trainer.base_causal_lm.config):
            raise InputError(f"max_completion_length: {found}, and the model has no positions past its context")
        say(f"WARNING: max_completion_length: {found}, so that their completions may run past the context")


def has_position_table(config: PreTrainedConfig) -> bool:
    """Whether a model knows as many positions as its configuration says, and no more."""
    text = config.get_text_config()
    return hasattr(text, "max_position_embeddings") and getattr(text, "rope_parameters", None) is None


def check_prompt_ids(
    prompt_ids: Sequence[Sequence[int]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse prompts that no completion can follow.

    Raises:
        InputError: a prompt has no token, or as many as the context.
    """
    context = context_length(model.config, tokenizer)
    for ids in prompt_ids:
        if not ids:
            raise InputError("prompt: is empty; the first token of a completion is drawn after one of the prompt")
        if len(ids) >= context:
            raise InputError(
                f"prompt: its {len(ids)} tokens fill the context of {context}; shorten it, or leave it out"
            )
