"""Whether a model is sampled and scored rightly: tried on a few tokens, as no list of families is ever complete."""

import torch
from transformers import PreTrainedModel

from .rollout import evaluating, sample_completions
from .sampling import SamplingParams

GROUPS, TOKENS = [[3, 5, 7, 9, 11, 13, 8], [4, 6, 8, 10]], 3
PROMPTS = [prompt for prompt in GROUPS for _ in range(2)]
TOLERANCE, ROUNDED = 1e-3, 0.3  # nats, for weights in float32 and for others; a wrong path is off by more


@torch.no_grad()
def rollout_fault(model: PreTrainedModel, fp32_head: bool) -> str | None:
    """Why `sample_completions` is wrong for a model; None where its log-probabilities are those of the model."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluating(model):
        torch.manual_seed(0)
        try:
            rollout = sample_completions(model, PROMPTS, SamplingParams(), TOKENS, [], GROUPS[0][0], fp32_head)
        except (TypeError, RuntimeError) as error:  # its attention passes on other arguments, or other shapes
            return f"{type(model).__name__} does not let itself be taken over ({type(error).__name__})"
    if differ(model, torch.tensor(rollout.log_probs), rollout.completion_ids, temperature=1.0):
        return f"{type(model).__name__} gives other probabilities when it is taken over"
    return None


@torch.no_grad()
def scoring_is_right(model: PreTrainedModel, temperature: float) -> bool:
    """Whether the scoring that `add_scoring` has given to a model agrees with the model's own logits."""
    completions = [[3 + 2 * row + column for column in range(TOKENS)] for row in range(len(PROMPTS))]
    ids = torch.full((len(PROMPTS), len(GROUPS[0]) + TOKENS), GROUPS[0][0], device=model.device)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, completions, strict=True)):
        real = slice(-len(prompt) - TOKENS, None)
        ids[row, real], mask[row, real] = torch.tensor(prompt + completion, device=model.device), 1
    with evaluating(model):
        scored = model(input_ids=ids, attention_mask=mask, completion_length=TOKENS).log_probs.cpu()
    return not differ(model, scored, completions, temperature)


def differ(model: PreTrainedModel, log_probs: torch.Tensor, completions: list[list[int]], temperature: float) -> bool:
    """Whether log-probabilities (rows, tokens) are not those of the model's logits of whole rows, but for rounding."""
    own = []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        with evaluating(model):
            logits = model(input_ids=torch.tensor([prompt + completion], device=model.device)).logits[0].float().cpu()
        of_completion = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        own.append(of_completion.gather(1, torch.tensor(completion)[:, None])[:, 0])
    tolerance = TOLERANCE if model.dtype == torch.float32 else ROUNDED
    return not (log_probs - torch.stack(own)).abs().max() <= tolerance  # no number is a difference, too
