"""Whether a model can be sampled and scored here: what its configuration says, then tried on a few tokens.

No list of families is ever complete, so the log-probabilities of both are compared with the model's own logits.
"""

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from .rollout import evaluating, sample_completions
from .sampling import SamplingParams
from .scoring import CompletionBatch, Scorer, causal_lm

ATTENTION = ("sdpa", "eager")  # those whose masks are tested to have holes
LENGTH_BOUND_ROPE = ("dynamic", "longrope")
# What a configuration says of logits that are more than `W h + b`; the scorer reads W and b alone.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")

GROUPS, TOKENS = [[3, 5, 7, 9, 11, 13, 8], [4, 6, 8, 10]], 3  # of the trial
PROMPTS = [prompt for prompt in GROUPS for _ in range(2)]
TOLERANCE, ROUNDED = 1e-3, 0.3  # nats, for weights in float32 and for others; a wrong path is off by more


def shared_prefix_obstacle(model: PreTrainedModel, checkpointing: bool) -> str | None:
    """Why the prompt of a group cannot be run once; None if it can."""
    config = model.config.get_text_config()
    has_window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    if set(layer_types) != {"full_attention"} or (not hasattr(config, "layer_types") and has_window):
        return f"not all layers of {type(model).__name__} attend to everything before them"
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") in LENGTH_BOUND_ROPE:
        return "its rotary embedding depends on the longest row of a batch"
    if config._attn_implementation not in ATTENTION:
        return f"attn_implementation {config._attn_implementation} is not among {', '.join(ATTENTION)}"
    if not model._supports_attention_backend:
        return f"{type(model).__name__} does not take another attention function"
    return "gradient_checkpointing keeps no keys and values" if checkpointing else None


def refuse_changed_logits(model: PreTrainedModel) -> None:
    """Raise `InputError` if a configuration says that logits are more than the head's product."""
    config = model.config.get_text_config()
    changed = [name for name in LOGIT_CHANGES if getattr(config, name, None) not in (None, 1.0)]
    if changed:
        raise InputError(f"model_name_or_path: its {changed[0]} changes the logits, which scoring here leaves out")


@torch.no_grad()
def rollout_fault(model: PreTrainedModel, fp32_head: bool) -> str | None:
    """Why `sample_completions` is wrong for a model; None if its log-probabilities are those of the model."""
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


def check_scorer(scorer: Scorer) -> str | None:
    """Let a scorer that is wrong with shared prompts take whole rows; returns why, or None.

    Raises:
        InputError: it is wrong with whole rows, too.
    """
    if scoring_is_right(scorer):
        return None
    name = type(causal_lm(scorer.model)).__name__
    if not scorer.share_prefix:
        raise InputError(f"model_name_or_path: the logits of {name} are not those of its head, which is all we score")
    scorer.share_prefix = False
    check_scorer(scorer)
    return f"{name} gives other probabilities after a prompt in a cache"


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
    """Whether log-probabilities (rows, tokens) differ from those of the model's logits by more than rounding."""
    own = []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        with evaluating(model):
            logits = model(input_ids=torch.tensor([prompt + completion], device=model.device)).logits[0].float().cpu()
        of_completion = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        own.append(of_completion.gather(1, torch.tensor(completion)[:, None])[:, 0])
    tolerance = TOLERANCE if model.dtype == torch.float32 else ROUNDED
    return not (log_probs - torch.stack(own)).abs().max() <= tolerance  # NaN differs, too
