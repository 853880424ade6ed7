"""What a GRPO run prints: its batch arithmetic, the active refinements, and the results."""

import math

from ..medqa.card import DEV_METRICS, dev_evaluations
from ..medqa.tasks import MEDQA
from ..model_card import CardEvaluation
from ..training.curves import DEV_ACCURACIES, Panel
from ..training.throughput import state_memory
from .arguments import PureGRPOConfig
from .sft import AnswerTrainer
from .trainer import PureGRPOTrainer

SAMPLED = {"rewards/correct/mean": "sampled, train", "eval_rewards/correct/mean": "sampled, dev"}
RIGHT = Panel("Accuracy (95 % intervals)", {**SAMPLED, **DEV_ACCURACIES}, "share", MEDQA.chance)
TOKENS = {"completions/mean_length": "mean length", "sampling/kept_tokens": "candidate tokens per position"}
SHARES = {
    "medqa/parse_rate": "readable answers",
    "frac_reward_zero_std": "groups with equal rewards",
    "off_policy/masked_share": "masked as off policy",
    "clip_ratio/region_mean": "clipped tokens",
}
PANELS = [
    RIGHT,
    Panel("Completions (tokens)", TOKENS, "zero"),
    Panel("KL and entropy (nats per token)", {"kl": "KL to the reference", "entropy": "entropy"}, "zero"),
    Panel("Shares of completions, groups and tokens", SHARES, "share"),
]
BASELINE_PANELS = [Panel("Cross entropy (nats per token)", {"loss": "training"}), RIGHT]
# Fact, metric and unit that show whether a refinement had any effect.
REFINEMENT_METRICS = (
    ("KL to the reference model", "kl", "nats per token"),
    ("off-policy sequences masked", "off_policy/masked_share", "of all"),
    ("maximum off-policy drift, negative advantage", "off_policy/farthest", "nats per token"),
    ("tokens kept per position", "sampling/kept_tokens", "tokens"),
)
INERT = "WITHOUT EFFECT: "


def step_arithmetic(args: PureGRPOConfig, num_questions: int, min_tokens: int) -> dict[str, str]:
    """The sizes of a step, a rollout and the run."""
    prompts, total = args.plan.prompts, args.max_steps * args.plan.prompts / args.num_iterations
    right, short, *others = args.reward_weights or (1, 1)
    budget = f", or {args.max_tokens:,} generated tokens if that comes first" if args.max_tokens else ""
    return {
        "step": f"{prompts:g} prompts x {args.num_generations} completions = {args.plan.sequences_per_step}",
        "rollout": f"{args.generation_batch_size} completions, {args.plan.updates:g} update(s)",
        "run": f"{args.max_steps:,} steps{budget}",
        "questions": f"{num_questions:,}, each used {total / num_questions:.3g} times",
        "completion": f"up to {args.max_completion_length} tokens at temperature {args.temperature:g}",
        "reward": f"{right:g} x correct {short:+g} x length_penalty (answers shorter than {min_tokens} tokens)"
        + "".join(f" {weight:+g} x custom reward" for weight in others),
    }


def describe_refinements(trainer: PureGRPOTrainer) -> dict[str, str]:
    """Which of DeepSeek-V3.2's refinements and our optimizations are active, and why others are not."""
    args, params = trainer.args, trainer.sampling_params
    threshold = args.off_policy_mask_threshold
    off_policy = f"above {threshold} nats per token" if args.plan.updates > 1 else INERT + "needs several updates"
    unbiased = "on" if args.use_bias_correction_kl else "off"
    cuts = f"on, top-p {params.top_p:g}, top-k {params.top_k}, min-p {params.min_p:g}"
    keep = cuts if params.truncates else INERT + "no token is excluded; set top_p below 1"
    rollouts = "transformers' generate, because " if trainer.rollout_obstacle else "each prompt computed once"
    return {
        "unbiased KL": f"{unbiased}, beta {args.beta:g}" if args.beta else INERT + "needs beta above 0",
        "off-policy mask": "off" if threshold in (None, math.inf) else off_policy,
        "keep-sampling mask": keep if args.keep_sampling_mask else "off",
        "advantages": f"scale_rewards {args.scale_rewards}, loss_type {args.loss_type}, "
        f"{'float32' if trainer.fp32_head or not args.bf16 else 'bf16'} head",
        "rollouts": "vLLM" if args.use_vllm else rollouts + (trainer.rollout_obstacle or ""),
        "scoring": f"full sequences, because {trainer.prefix_obstacle}"
        if trainer.prefix_obstacle
        else "each prompt once",
    }


def memory(trainer: PureGRPOTrainer | AnswerTrainer) -> str:
    """Memory of the weights on each device, including the reference model."""
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    frozen = trainer.model.num_parameters() - trained
    if isinstance(trainer, PureGRPOTrainer) and trainer.ref_model is not None:
        frozen += trainer.ref_model.num_parameters()
    return f"{state_memory(trained)}; {4 * frozen / 1e9:.2f} GB for frozen weights"


def result_facts(trainer: PureGRPOTrainer | AnswerTrainer, started_from: str) -> dict[str, str]:
    """Results of a finished run, as printed and written to the model card."""
    facts = {"started from": started_from, "steps": f"{trainer.state.global_step:,}"}
    history = trainer.state.log_history
    if isinstance(trainer, PureGRPOTrainer):
        facts["generated tokens"] = f"{trainer.token_budget.generated_tokens:,}"
        rewards = [line["rewards/correct/mean"] for line in history if "rewards/correct/mean" in line]
        change = f"{rewards[0]:.3f} at first, {rewards[-1]:.3f} at the end" if rewards else "not logged"
        facts["accuracy of sampled answers"] = change
        for name, metric, unit in REFINEMENT_METRICS:
            # Skip the final summary, which repeats the last values.
            values = [line[metric] for line in history if line.get(metric) is not None and "train_loss" not in line]
            if values:
                facts[name] = f"mean {sum(values) / len(values):.4g}, maximum {max(values):.4g} {unit}"
    for scorer, metric in DEV_METRICS.items():
        accuracies = [line[metric] for line in history if metric in line]
        if accuracies:
            facts[f"dev accuracy by {scorer}"] = f"{accuracies[0]:.3f} at first, {accuracies[-1]:.3f} at the end"
    if trainer.ends_with_best:
        _, step, value = trainer.best_saved()
        chosen = f"{trainer.args.metric_for_best_model} {value:.3f}"
        facts["weights"] = f"step {step}, {chosen}: the best of the run, so biased upwards"
    return facts


def card_evaluations(trainer: PureGRPOTrainer | AnswerTrainer, questions: str) -> list[CardEvaluation]:
    """Dev accuracies of the saved weights by letter and text, if they were measured."""
    best, step, _ = trainer.best_saved() if trainer.ends_with_best else (None, trainer.state.global_step, 0)
    metrics = {
        name: value for line in trainer.state.log_history if line["step"] == step for name, value in line.items()
    }
    return dev_evaluations(
        trainer.questions, [questions], metrics, trainer.args.metric_for_best_model if best else None
    )
