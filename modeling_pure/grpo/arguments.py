"""GRPO arguments. By default a step has 8 prompts x 16 completions, a run 4,578 steps or 600M generated tokens.

TRL's own defaults disable the refinements of DeepSeek-V3.2 (arXiv 2512.02556, section 3.1): no KL term (beta 0), one
update per rollout (so that no sequence is off-policy), advantages divided by their standard deviation.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from trl import GRPOConfig

from ..errors import InputError
from ..medqa.formats import checked_formats
from ..medqa.rewards import REWARD_WEIGHTS
from ..options import check_choices, check_numbers, check_shares, check_texts, option
from ..recipe import parse_value
from ..training.batch import BatchPlan, RolloutPlan
from ..training.trainer_options import RunOptions, check_trainer_options, refuse_idle
from .sampling import MASKING_OPTIONS, SamplingParams

ALGORITHMS = ("grpo", "sft")
SCALES = ("group", "batch", "none", True, False)
IMPORTANCE_LEVELS, AGGREGATIONS = ("token", "sequence"), ("sum_then_normalize", "normalize_then_sum")
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")  # TRL checks it at the first loss
# Option or prefix, and the option and value without which it has no effect.
BELONG_TO = (
    ("vllm_", "use_vllm", True),
    ("sapo_", "loss_type", "sapo"),
    ("vespo_", "loss_type", "vespo"),
    (("entropy_coef_", "entropy_target"), "use_adaptive_entropy", True),
    ("ref_model_", "sync_ref_model", True),
    (("log_unique_prompts", "log_completions_hub_repo"), "log_completions", True),
    ("transformers_continuous_batching_config", "use_transformers_continuous_batching", True),
)


@dataclass
class GRPOScriptArguments:
    """Model, questions and reward."""

    FIXED: ClassVar = (
        *("model_name_or_path", "questions", "questions_config", "grpo_holdout", "holdout_only", "passages"),
        *("num_passages", "length_penalty_min_tokens", "answer_formats", "chat", "lora_alpha"),
    )
    TENSORS: ClassVar = ("algorithm", "lora_rank", "model_shape")

    model_name_or_path: str = option("runs/pretrain", "any causal language model: a folder or a Hub id")
    questions: str = option("GBaker/MedQA-USMLE-4-options", "MedQA questions: a Hub id or local files")
    questions_config: str | None = option(None, "the Hub data set's configuration")
    grpo_holdout: float = option(0.0, "share of train questions excluded from pretraining, as in its recipe")
    holdout_only: bool = option(False, "train on those excluded questions only")
    length_penalty_min_tokens: int = option(
        4, "penalise answers shorter than this many tokens by up to 0.01 of reward; 0 = off"
    )
    medqa_dev_questions: int = option(500, "maximum number of dev questions per evaluation")
    answer_formats: dict[str, float] | str | None = option(
        None,
        "letter, text or reasoned, or their shares, '{text: 0.5, reasoned: 0.5}'; default: text if the "
        "checkpoint was taught it, else letter",
    )
    chat: bool = option(False, "use the tokenizer's chat template, for instruct models")
    passages: str | None = option(None, "open book: folder of texts to retrieve passages for each question from")
    num_passages: int = option(3, "passages per question")
    algorithm: str = option("grpo", "grpo, or sft: cross entropy on the right answers to the same prompts")
    lora_rank: int = option(0, "rank of LoRA adapters; 0 = train all weights")
    lora_alpha: int = option(32, "LoRA's alpha: adapters are scaled by lora_alpha / lora_rank")

    def __post_init__(self) -> None:
        check_texts(self)
        check_choices(self, algorithm=ALGORITHMS)
        check_numbers(self, length_penalty_min_tokens=0, medqa_dev_questions=0, lora_rank=0, lora_alpha=1)
        check_numbers(self, num_passages=1)  # closed book: leave `passages` out
        check_shares(self, "grpo_holdout")
        if self.answer_formats and isinstance(self.answer_formats, str):
            self.answer_formats = parse_value(self.answer_formats)
        if self.answer_formats is not None:
            self.answer_formats = checked_formats("answer_formats", self.answer_formats)


@dataclass
class PureGRPOConfig(RunOptions, GRPOConfig):
    """The algorithm, optimisation, checkpoints and logging."""

    FIXED = (
        *RunOptions.FIXED,
        *("prompts_per_step", "updates_per_rollout", "num_iterations", "num_generations", "max_completion_length"),
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", "keep_sampling_mask"),
        *("use_vllm", "chat_template_kwargs", "shuffle_dataset", "disable_dropout", "cast_lm_head_to_fp32"),
        *("beta", "use_bias_correction_kl", "off_policy_mask_threshold", "sync_ref_model", "ref_model_mixup_alpha"),
        *("ref_model_sync_steps", "epsilon", "epsilon_high", "delta", "loss_type", "importance_sampling_level"),
        *("reward_weights", "scale_rewards", "multi_objective_aggregation", "mask_truncated_completions"),
        *("top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "model_init_kwargs"),
    )

    output_dir: str = option("runs/grpo", "run folder; the same command resumes from its last complete checkpoint")
    max_steps: int = option(4578, "maximum number of optimizer steps")
    max_tokens: int = option(600_000_000, "maximum number of generated tokens; 0 = no limit")
    prompts_per_step: int | None = option(
        None, "prompts per optimizer step over all devices; sets micro-batches and accumulation"
    )
    updates_per_rollout: int | None = option(None, "optimizer steps per rollout")
    per_device_train_batch_size: int = option(
        32, "completions per micro-batch and device; an upper limit with prompts_per_step"
    )
    gradient_accumulation_steps: int = option(4, "micro-batches per optimizer step, without prompts_per_step")
    steps_per_generation: int = option(8, "micro-batches per rollout, without updates_per_rollout")
    num_generations: int = option(16, "completions per prompt (a group)")
    max_completion_length: int = option(256, "maximum number of tokens per completion")
    temperature: float = option(1.0, "sampling temperature")
    learning_rate: float = option(1e-5, "learning rate of AdamW after warm-up")
    lr_scheduler_type: str = option("constant_with_warmup", "schedule")
    warmup_steps: float = option(50, "steps of linear warm-up")
    top_p: float = option(0.95, "sample from the most likely tokens with this total probability; 1 = all tokens")
    top_k: int = option(512, "sample from the k most likely tokens; 0 = no limit, which sorts the vocabulary")
    keep_sampling_mask: bool = option(
        True,
        "train over the tokens that could be sampled, not the whole vocabulary; false also allows options that "
        "no mask can express, such as repetition_penalty, for which transformers' generate samples",
    )
    beta: float = option(0.001, "weight of the KL term towards the starting model")
    use_bias_correction_kl: bool = option(True, "unbiased KL: the k3 estimate times the ratio")
    off_policy_mask_threshold: float | None = option(
        0.05, "drop samples with negative advantage this far (nats per token) off policy; inf = drop none"
    )
    # The trainer replaces this very list if the rewards are not MedQA's.
    reward_weights: list[float] | None = option(REWARD_WEIGHTS, "of a right answer and of the length penalty")
    scale_rewards: str | bool = option(  # type: ignore[assignment]  # TRL documents both
        "none", "what to divide advantages by: none, or the standard deviation over group or batch"
    )
    loss_type: str = option("grpo", "how token losses are averaged; grpo = per sequence")
    shuffle_dataset: bool | None = option(False, "shuffle the prompts, whose order already varies by epoch")
    disable_dropout: bool = option(True, "disable dropout, so that the trained policy is the one that sampled")
    cast_lm_head_to_fp32: bool = option(True, "compute logits in fp32, where bf16 adds most of its noise")
    attention_kernel: str = option(
        "flash", "flash, cudnn (builds a plan for every batch length), or auto (PyTorch's choice)"
    )
    gradient_checkpointing: bool = option(False, "recompute activations to save memory")
    log_completions: bool = option(True, "print sampled completions, and save them as parquet in the run folder")
    num_completions_to_print: int | None = option(2, "completions printed per log line")
    eval_steps: float | None = option(200, "optimizer steps between evaluations")
    per_device_eval_batch_size: int = option(32, "dev questions per batch and device")
    num_generations_eval: int | None = option(1, "completions per dev question")
    metric_for_best_model: str | None = option(
        None,
        "metric that selects the best checkpoint; default: dev accuracy by letter or text, which involves no "
        "reward, and eval_rewards/correct/mean for reasoned answers and chat",
    )
    load_best_model_at_end: bool = option(False, "finish with the best checkpoint's weights")
    save_steps: float = option(200, "optimizer steps between checkpoints")
    seed: int = option(0, "seed of sampling, and of the order of questions unless data_seed is set")
    trust_remote_code: bool = option(False, "run Python code from the model's repository")

    def __post_init__(self) -> None:
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every forward pass uses every weight
        self.metric_is_default = self.metric_for_best_model is None
        if self.metric_is_default:
            self.metric_for_best_model = "eval_medqa_accuracy"
        self._check_options()
        self._divide_step()
        super().__post_init__()
        self._check_sampling()
        self.plan = RolloutPlan(
            self.per_device_train_batch_size,
            self.gradient_accumulation_steps,
            self.world_size,
            self.num_generations,
            cast(int, self.generation_batch_size),
            self.steps_per_generation * self.num_iterations,
        )

    def _check_options(self) -> None:
        """Raise `InputError` for unusable values and options without effect."""
        check_trainer_options(self)
        check_choices(self, scale_rewards=SCALES, loss_type=LOSS_TYPES, importance_sampling_level=IMPORTANCE_LEVELS)
        check_choices(self, multi_objective_aggregation=AGGREGATIONS)
        check_numbers(self, max_tokens=0, prompts_per_step=1, updates_per_rollout=1, steps_per_generation=1)
        check_numbers(self, num_generations=2, num_generations_eval=1, max_completion_length=1, beta=0)
        check_numbers(self, num_completions_to_print=0, generation_batch_size=1)
        check_numbers(self, num_iterations=1, ref_model_sync_steps=1)
        if self.pad_to_multiple_of != "auto":
            check_numbers(self, pad_to_multiple_of=1)
        if self.off_policy_mask_threshold is not None and not self.off_policy_mask_threshold >= 0:  # inf: no mask
            raise InputError(f"off_policy_mask_threshold: expected 0 or more, found {self.off_policy_mask_threshold}")
        if self.reward_weights and not all(map(math.isfinite, self.reward_weights)):
            raise InputError(f"reward_weights: expected numbers, found {self.reward_weights}")
        if self.sync_ref_model and not self.beta:
            raise InputError("sync_ref_model: has no effect without beta above 0")
        for prefix, needs, value in BELONG_TO:
            refuse_idle(self, prefix, getattr(self, needs) == value, f"{needs} {value}")

    def _divide_step(self) -> None:
        """Derive TRL's batch options from `prompts_per_step` and `updates_per_rollout`."""
        if self.prompts_per_step is not None:
            plan = BatchPlan.divide(
                f"prompts_per_step: {self.prompts_per_step} x {self.num_generations} completions",
                self.prompts_per_step * self.num_generations,
                int(os.environ.get("WORLD_SIZE", "1")),  # `world_size` is not known yet
                self.per_device_train_batch_size,
            )
            self.per_device_train_batch_size = plan.micro_batch_size
            self.gradient_accumulation_steps = plan.accumulation
        if self.generation_batch_size is not None:  # TRL takes one of the two
            if self.updates_per_rollout or self.steps_per_generation != type(self).steps_per_generation:
                raise InputError("generation_batch_size: replaces steps_per_generation; set only one of them")
            self.steps_per_generation = None  # type: ignore[assignment]  # TRL fills it in
        if self.updates_per_rollout is not None:
            micro_batches = self.updates_per_rollout * self.gradient_accumulation_steps
            if micro_batches % self.num_iterations:
                raise InputError(
                    f"updates_per_rollout: expected a multiple of num_iterations {self.num_iterations} above 0, found "
                    f"{self.updates_per_rollout}"
                )
            self.steps_per_generation = micro_batches // self.num_iterations

    def _check_sampling(self) -> None:
        """Raise `InputError` for sampling options and backends that keep no masks."""
        sampling = self.sampling_params(())  # checks the values
        if self.use_transformers_continuous_batching:
            name = "use_transformers_" + ("paged" if self.use_transformers_paged else "continuous_batching")
            raise InputError(f"{name}: returns no sampling masks, and TRL leaves the weights in bf16")
        if self.use_vllm and self.keep_sampling_mask:
            raise InputError(
                "use_vllm: returns no sampling masks; leave it out, or set keep_sampling_mask false, top_p 1, top_k 0"
            )
        if self.use_vllm and sampling.truncates and self.vllm_importance_sampling_correction:
            raise InputError(
                "use_vllm: with top_p, top_k or min_p, TRL's importance correction makes the loss nearly 0; set "
                "top_p 1.0 and top_k 0"
            )
        if self.keep_sampling_mask and self.unmaskable:
            raise InputError(f"{self.unmaskable}, which no sampling mask can express; set keep_sampling_mask false")

    @property
    def unmaskable(self) -> str | None:
        """An option that no sampling mask can express, so that transformers' `generate` has to sample."""
        if self.repetition_penalty != 1:
            return "repetition_penalty: changes the odds between tokens"
        others = [name for name in self._generation_options if name not in MASKING_OPTIONS]
        return f"generation_kwargs: '{others[0]}' is not one of {', '.join(MASKING_OPTIONS)}" if others else None

    def sampling_params(self, never: Iterable[int]) -> SamplingParams:
        """The settings to sample with; `never` are additional ids to suppress."""
        more = self._generation_options
        suppressed = {*(more.get("suppress_tokens") or ()), *never}
        return SamplingParams(
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p or 0.0,
            tuple(sorted(suppressed)),
            more.get("min_new_tokens") or 0,
        )

    @property
    def _generation_options(self) -> dict[str, Any]:
        given = cast(dict[str, Any], self.generation_kwargs or {})  # a string has been parsed
        return {name: value for name, value in given.items() if (name, value) != ("do_sample", True)}
