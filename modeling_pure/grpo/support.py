"""Whether we can sample from and score a model: checks its configuration, then compares log-probabilities.

No list of model families is complete, so sampling and scoring are tried on a few tokens against the model's logits.
"""

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from .rollout import evaluating, sample_completions
from .sampling import SamplingParams, uniform_numbers
from .scoring import CompletionBatch, Scorer, causal_lm

ATTENTION = ("sdpa", "eager")  # tested with padding inside the mask
LENGTH_BOUND_ROPE = ("dynamic", "longrope")
# Configuration fields that change the logits `W h + b`; the scorer only uses W and b.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")

PROMPTS, TOKENS = [*[[3, 5, 7, 9, 11, 13, 8]] * 2, *[[4, 6, 8, 10]] * 2], 3  # for the trial
TOLERANCE, ROUNDED = 1e-3, 0.3  # nats, for float32 weights and others; wrong results differ by more


def shared_prefix_obstacle(model: PreTrainedModel, checkpointing: bool) -> str | None:
    """Why a group's prompt cannot be computed once; None if it can."""
    config = model.config.get_text_config()
    has_window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    if set(layer_types) != {"full_attention"} or (not hasattr(config, "layer_types") and has_window):
        return f"not all layers of {type(model).__name__} use full attention"
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") in LENGTH_BOUND_ROPE:
        return "its rotary embedding depends on the longest sequence of a batch"
    if config._attn_implementation not in ATTENTION:
        return f"attn_implementation {config._attn_implementation} is not one of {', '.join(ATTENTION)}"
    if not model._supports_attention_backend:
        return f"{type(model).__name__} does not support custom attention functions"
    return "gradient_checkpointing keeps no keys and values" if checkpointing else None


def refuse_changed_logits(model: PreTrainedModel) -> None:
    """Raise `InputError` if a configuration changes the logits of the head."""
    config = model.config.get_text_config()
    changed = [name for name in LOGIT_CHANGES if getattr(config, name, None) not in (None, 1.0)]
    if changed:
        raise InputError(f"model_name_or_path: unsupported {changed[0]}, which changes the logits of the head")


@torch.no_grad()
def rollout_fault(model: PreTrainedModel, fp32_head: bool) -> str | None:
    """Why `sample_completions` fails for a model; None if its log-probabilities agree with the model's."""
    uniform = uniform_numbers("trial", len(PROMPTS), TOKENS)
    with evaluating(model):
        try:
            rollout = sample_completions(model, PROMPTS, SamplingParams(), TOKENS, [], 0, fp32_head, uniform)
        except (TypeError, RuntimeError) as error:  # its attention passes other arguments or shapes
            return f"{type(model).__name__} does not work with our attention function ({type(error).__name__})"
    if differ(model, torch.tensor(rollout.log_probs), rollout.completion_ids, temperature=1.0):
        return f"{type(model).__name__} computes different probabilities with our attention function"
    return None


def check_scorer(scorer: Scorer) -> str | None:
    """Turn `share_prefix` off if a scorer is wrong with it; returns why, or None.

    Raises `InputError` if the scorer is wrong without it, too.
    """
    if scoring_is_right(scorer):
        return None
    name = type(causal_lm(scorer.model)).__name__
    if not scorer.share_prefix:
        raise InputError(f"model_name_or_path: unsupported, since {name} changes the logits of its head")
    scorer.share_prefix = False
    check_scorer(scorer)
    return f"{name} computes different probabilities with a cached prompt"


@torch.no_grad()
def scoring_is_right(scorer: Scorer) -> bool:
    """Whether a scorer agrees with its model's own logits."""
    model = causal_lm(scorer.model)
    completions = [[3 + 2 * row + column for column in range(TOKENS)] for row in range(len(PROMPTS))]
    texts = [prompt + completion for prompt, completion in zip(PROMPTS, completions, strict=True)]
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts], device=model.device)
    with evaluating(model):
        log_probs = scorer(CompletionBatch(ids, mask, TOKENS)).log_probs.cpu()
    return not differ(model, log_probs, completions, scorer.temperature)


def differ(model: PreTrainedModel, log_probs: torch.Tensor, completions: list[list[int]], temperature: float) -> bool:
    """Whether log-probabilities (rows, tokens) differ from the model's logits by more than rounding."""
    own = []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        with evaluating(model):
            logits = model(input_ids=torch.tensor([prompt + completion], device=model.device)).logits[0].float().cpu()
        of_completion = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        own.append(of_completion.gather(1, torch.tensor(completion)[:, None])[:, 0])
    tolerance = TOLERANCE if model.dtype == torch.float32 else ROUNDED
    return not (log_probs - torch.stack(own)).abs().max() <= tolerance  # also true for NaN
