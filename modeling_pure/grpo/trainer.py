"""`trl.GRPOTrainer` with keep-sampling masks, prompts computed once per group, and a token budget.

Rewards, advantages, the loss with its unbiased KL term and the off-policy sequence mask are TRL's. Without masks to
keep, TRL's own code samples and scores what ours cannot.

A mask is created in `_generate_single_turn`, used to score the old and the reference policy, and added to TRL's batch
in `_generate_and_score_completions`. `_compute_loss` passes it to the current policy. `scoring.Scorer.forward` applies
it. docs/ARCHITECTURE.md lists the overridden methods with their reasons.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoConfig, PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from ..errors import InputError, RunStopped
from ..medqa.formats import set_end_tokens
from ..medqa.log_likelihood import context_length
from ..medqa.questions import Question
from ..medqa.rewards import REWARD_WEIGHTS, LengthPenalty
from ..tokenizer import added_tokens, end_no_prompt, prompt_ids
from ..training.checkpoint import callback_attributes
from ..training.kernels import choose_attention_kernel
from .arguments import PureGRPOConfig
from .budget import SaveAfterRollout, TokenBudget
from .fallbacks import generate_completions, generate_without_masks
from .prompts import check_prompt_ids, check_training_rows
from .rollout import Rollout, evaluating, sample_completions
from .sampling import uniform_numbers
from .scoring import CompletionBatch, Scorer, ScoringTrainer, deal_groups
from .support import check_scorer, refuse_changed_logits, rollout_fault, shared_prefix_obstacle

logger = logging.getLogger(__name__)
STEP_METRICS = ("loss", "grad_norm", "learning_rate", "epoch", "step")  # not in TRL's summary of a run


@dataclass
class MaskedScorer:
    """A scorer and its sampling mask, passed through TRL instead of a model.

    Attributes:
        scorer: as wrapped for training; a model if TRL's own code scores.
        log_probs: the result of scoring, detached.
    """

    scorer: nn.Module
    sampling_mask: torch.Tensor | None
    log_probs: torch.Tensor | None = None


class PureGRPOTrainer(ScoringTrainer, GRPOTrainer):
    """GRPO with the refinements of DeepSeek-V3.2 (arXiv 2512.02556, section 3.1), in single turns of text.

    Takes the arguments of `GRPOTrainer`, in the same order.

    Args:
        questions: MedQA dev questions to answer at each evaluation (`eval_medqa_accuracy`).

    Raises:
        InputError: the model or set-up does not allow masks, or a row cannot be trained on.
        RunStopped: while training, a probability is NaN, or a reward is infinite.
    """

    model: PreTrainedModel
    args: PureGRPOConfig
    train_dataset: Dataset
    ref_model: PreTrainedModel | None
    _buffered_inputs: list[dict[str, Any]] | None  # type: ignore[assignment]  # inferred as None

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: PureGRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *more: Any,
        questions: list[Question] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:  # as in TRL, the folder is named after the model
            name = model if isinstance(model, str) else model.config._name_or_path
            strategy = "steps" if eval_dataset is not None else "no"
            args = PureGRPOConfig(f"{name.rstrip('/').split('/')[-1]}-GRPO", eval_strategy=strategy)
        if not isinstance(args, PureGRPOConfig):
            raise InputError(f"args: expected a PureGRPOConfig, found a {type(args).__name__}")
        self.questions = questions or []
        if args.metric_is_default and not self.questions:  # evaluation will not return the default
            args.metric_for_best_model = "loss" if args.load_best_model_at_end else None
            args.greater_is_better = False if args.load_best_model_at_end else None
        if args.reward_weights is REWARD_WEIGHTS and not are_medqa_rewards(reward_funcs):
            args.reward_weights = None  # TRL's default, 1 each
        rewards = len(reward_funcs) if isinstance(reward_funcs, list) else 1
        if args.reward_weights is not None and len(args.reward_weights) != rewards:
            raise InputError(f"reward_weights: expected {rewards}, one per reward, found {args.reward_weights}")
        self._rollout: Rollout | None = None  # from its sampling to TRL's batch: TRL has no argument to pass it in
        self._rollout_of_step = ("", 0)  # the last step that was sampled for, and its number of rollouts so far
        self.fp32_head = args.cast_lm_head_to_fp32
        if has_tied_head(model, args):
            args.cast_lm_head_to_fp32 = False  # TRL would also cast the embeddings; the scorer only casts the product
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, *more, **kwargs)
        choose_attention_kernel(self.args.attention_kernel)
        # A run resumed inside a rollout would sample for other prompts.
        self.stop_on_signal.may_stop = self.rollout_done
        self.token_budget = TokenBudget(self.args.max_tokens, self.rollout_done)
        self.add_callback(self.token_budget)
        self.add_callback(SaveAfterRollout(self.rollout_done))
        self._set_up_sampling_and_scoring()
        if isinstance(self.train_dataset, Dataset) and not self.left_to_trl:  # streams are checked while training
            config, room = self.base_causal_lm.config.get_text_config(), self.args.max_completion_length
            context = context_length(config, self._tokenizer)
            check_training_rows(self.train_dataset, self.reward_funcs, self._tokenize_prompts, config, context, room)

    def rollout_done(self) -> bool:
        """Whether the last rollout has been trained on completely."""
        return self._step % self.args.plan.micro_batches_per_rollout == 0

    # ---- our code or TRL's ----------------------------------------------------------------------------------------

    def _set_up_sampling_and_scoring(self) -> None:
        """Set up our sampling and scoring; without masks to keep, leave models that do not allow it to TRL."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InputError("GRPO needs the full model on every GPU; use accelerate_configs/multi_gpu.yaml (DDP)")
        self.left_to_trl: str | None = None
        self.scorers = {}
        self.prefix_obstacle: str | None
        self.rollout_obstacle: str | None
        try:
            self._check_support()
        except InputError as error:
            if self.args.keep_sampling_mask:
                raise
            self.left_to_trl = self.prefix_obstacle = self.rollout_obstacle = str(error)
            logger.warning(f"falling back to TRL's sampling and scoring: {error}")
        if self.args.cache_implementation and not self.generates:
            raise InputError("cache_implementation: has no effect, since sampling does not use `generate`")
        self.sampling_params = self.args.sampling_params(self._never_sampled())
        if self.generates and not self._is_vlm:
            suppressed = [*self.sampling_params.suppress_tokens] or None
            self.generation_config.suppress_tokens = self.generation_kwargs["suppress_tokens"] = suppressed

    def _check_support(self) -> None:
        """Create the scorers and choose how to sample; raises `InputError` for an unsupported model or set-up."""
        if self.tools or self.rollout_func or self._is_vlm or self.aux_loss_enabled:
            raise InputError("tools, environments, rollout_func, images and MoE losses need keep_sampling_mask false")
        inner = self.base_causal_lm
        refuse_changed_logits(inner)
        end_no_prompt(self._tokenizer)
        self.eos_token_ids = set_end_tokens(inner, self._tokenizer)
        obstacle = shared_prefix_obstacle(inner, bool(self.args.gradient_checkpointing))
        self.rollout_obstacle = (
            self.args.unmaskable
            or shared_prefix_obstacle(inner, checkpointing=False)
            or rollout_fault(inner, self.fp32_head)
        )
        scorer = Scorer(self.model, self.temperature, self.fp32_head, share_prefix=not obstacle)
        self.prefix_obstacle = check_scorer(scorer) or obstacle
        self.scorers = {self.model: scorer}
        if self.ref_model is not None:
            reference = Scorer(self.ref_model, self.temperature, self.fp32_head, scorer.share_prefix)
            self.scorers[self.ref_model] = reference

    @property
    def generates(self) -> bool:
        """Whether TRL or we sample by `generate`, with options that no mask can express or an unsupported model."""
        return not self.use_vllm and bool(self.left_to_trl or self.args.unmaskable)

    def _never_sampled(self) -> set[int]:
        """Padding, ids without a token, and ids that the model's own configuration suppresses."""
        model = self.base_causal_lm
        spare = {*range(model.config.get_text_config().vocab_size)} - {*self._tokenizer.get_vocab().values()}
        padding = {self._tokenizer.pad_token_id} - {*self.eos_token_ids}
        generation: Any = model.generation_config  # declared as optional
        return {*spare, *padding, *(generation.suppress_tokens or ())}

    def restore(self, checkpoint: Path) -> None:
        """Restore the count of generated tokens."""
        super().restore(checkpoint)
        attributes = callback_attributes(checkpoint, TokenBudget.__name__)
        self.token_budget.generated_tokens = attributes["generated_tokens"]
        if attributes.get("inside_rollout"):
            logger.warning(f"'{checkpoint}' was saved inside a rollout, the rest of which is skipped")

    def has_finished(self, checkpoint: Path) -> bool:
        """Whether the budget is spent, or the checkpoint was saved after the last step."""
        return self.token_budget.spent or super().has_finished(checkpoint)

    # ---- rollouts -------------------------------------------------------------------------------------------------

    def sample(self, prompt_ids: list[list[int]], uniform: torch.Tensor | None = None) -> Rollout:
        """Sample a completion for each prompt; adjacent equal prompts are a group.

        Args:
            uniform: random numbers in [0, 1) of shape (prompts, max_completion_length); None = from torch's generator.
        """
        if self.left_to_trl:
            with evaluating(self.model):
                completion_ids, _ = super()._generate_single_turn(prompt_ids, None, {}, self.num_generations)
            return Rollout(completion_ids, [], [], None)
        with evaluating(self.model), self.accelerator.autocast():
            if self.args.unmaskable:
                return generate_without_masks(
                    self.base_causal_lm, prompt_ids, self.generation_config, self.eos_token_ids
                )
            sample = generate_completions if self.rollout_obstacle else sample_completions
            return sample(
                self.base_causal_lm,
                prompt_ids,
                self.sampling_params,
                self.args.max_completion_length,
                self.eos_token_ids,
                self._tokenizer.pad_token_id,
                self.fp32_head,
                uniform,
            )

    def _numbers_of_rows(self, rows: int) -> torch.Tensor:
        """The random numbers of this process's rows, the same on any number of processes."""
        step = f"{'train' if self.model.training else 'eval'} {self.state.global_step}"
        before, number = self._rollout_of_step
        number = number + 1 if step == before else 0
        self._rollout_of_step = step, number
        first = self.args.process_index * rows
        key = f"rollout {self.args.seed} {step} {number}"
        return uniform_numbers(key, first + rows, self.args.max_completion_length)[first:]

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """Tokenize prompts without an appended EOS; in questions, special tokens are plain text."""
        if isinstance(prompts[0], str):
            front = [] if self.questions else added_tokens(self._tokenizer)[0]
            ids = prompt_ids(self._tokenizer, prompts, templated=not self.questions)
            output: Any = [front + row for row in ids], None, {}
        else:
            output = super()._tokenize_prompts(prompts)
        check_prompt_ids(output[0], self.base_causal_lm, self._tokenizer)
        return output

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if self.use_vllm or self.left_to_trl:
            with evaluating(self.model):
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if self.args.unmaskable:
            return self.sample(prompt_ids).completion_ids, None
        rollout = self.sample(prompt_ids, self._numbers_of_rows(len(prompt_ids)))
        log_probs = [log_prob for row in rollout.log_probs for log_prob in row]
        counts = [sum(map(sum, rollout.kept)), len(log_probs), sum(not math.isfinite(x) for x in log_probs)]
        # Summed over ranks, none of which may stop alone.
        kept, tokens, not_finite = self.accelerator.reduce(
            torch.tensor(counts, device=self.accelerator.device)
        ).tolist()
        if not_finite:
            raise RunStopped(f"step {self.state.global_step}: sampling produced NaN or inf")
        self._add_metric("sampling/kept_tokens", kept / tokens)
        if not self.args.keep_sampling_mask:
            return rollout.completion_ids, None
        self._rollout = rollout
        return rollout.completion_ids, rollout.log_probs

    def _generate(self, prompts: list[Any]) -> Any:
        output = super()._generate(prompts)
        if self.model.training:
            tokens = torch.tensor(sum(len(ids) for ids in output[1]), device=self.accelerator.device)
            self.token_budget.generated_tokens += int(self.accelerator.reduce(tokens, "sum"))
            self._metrics["train"]["generated_tokens"] = [self.token_budget.generated_tokens]
        return output

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        rollout, self._rollout = self._rollout, None
        if rollout and rollout.sampling_mask is not None:
            output["sampling_mask"] = rollout.sampling_mask
        if {"old_per_token_logps", "sampling_per_token_logps"} <= output.keys():
            mask = output["completion_mask"].bool()
            difference = (output["old_per_token_logps"] - output["sampling_per_token_logps"])[mask].abs()
            largest = difference.max() if len(difference) else difference.new_zeros(())
            self._add_maximum("sampling/log_prob_difference", self.accelerator.gather(largest).max().item())
        return output

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """As in TRL, but without shuffling completions, so that a micro-batch can share the prompts of groups."""
        if self.left_to_trl or not self.model.training:
            return super()._prepare_inputs(generation_batch)
        micro_batches = self.args.steps_per_generation
        if self.rollout_done() or self._buffered_inputs is None:
            updates = max(1, micro_batches // self.args.gradient_accumulation_steps)
            rollout = deal_groups(self._generate_and_score_completions(generation_batch), updates)
            self._buffered_inputs = split_tensor_dict(rollout, micro_batches)
        return self._buffered_inputs[self._step % micro_batches]

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*args)  # (completions of all devices, functions); NaN = no reward
        infinite = [
            name for name, column in zip(self.reward_func_names, rewards.T, strict=True) if column.isinf().any()
        ]
        if infinite:
            raise RunStopped(f"step {self.state.global_step}: the reward '{infinite[0]}' is infinite")
        self._add_metric("completions/unscored", rewards.isnan().all(1).float().mean().item())
        return rewards

    # ---- scores and loss ------------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module | MaskedScorer,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Score with the current, the old or the reference policy, all over the same mask."""
        if not isinstance(model, MaskedScorer):  # TRL is scoring a rollout
            mask = self._rollout.sampling_mask if self._rollout else None
            model = MaskedScorer(self.scorers.get(model, model), mask)
        if self.left_to_trl:
            scores = super()._get_per_token_logps_and_entropies(
                model.scorer, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        else:
            batch = CompletionBatch(input_ids, attention_mask, logits_to_keep, model.sampling_mask)
            with self.accelerator.autocast():
                parts = [model.scorer(part) for part in batch.split(batch_size)]
            log_probs, entropy = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            scores = log_probs, entropy if compute_entropy else None, None
        model.log_probs = scores[0].detach()
        return scores

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        policy = MaskedScorer(self.scorers.get(model, model), inputs.get("sampling_mask"))
        loss = super()._compute_loss(policy, inputs)
        if self.off_policy_mask_threshold is not None:
            self._log_off_policy(cast(torch.Tensor, policy.log_probs), inputs)
        return loss

    def _log_off_policy(self, now: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Log the share of sequences that TRL's off-policy mask drops, and the farthest one's distance."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        threshold = cast(float, self.off_policy_mask_threshold)
        sampler = inputs.get("sampling_per_token_logps", inputs.get("old_per_token_logps", now))
        advantages = inputs["advantages"].view(len(now), -1)
        kept = self.get_off_policy_mask(advantages, now, sampler, mask, threshold)
        drift = (sampler - now).nan_to_num(0.0) * mask  # vLLM may return NaN
        farthest = torch.where(advantages[:, 0] < 0, drift.sum(1) / mask.sum(1).clamp(min=1), 0.0).max()
        self._add_metric("off_policy/masked_share", 1 - self.accelerator.gather(kept.float()).mean().item())
        self._add_maximum("off_policy/farthest", self.accelerator.gather(farthest).max().item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL; the summary of a run in `log_history` also repeats each metric's last value.

        TRL's own summary would have none, since the last checkpoint resets the means (`StopOnSignal`).
        """
        super().log(logs, start_time)
        if "train_loss" in logs:
            last: dict[str, Any] = {}
            for line in self.state.log_history:
                known = line.items() if "loss" in line else ()
                last |= {name: value for name, value in known if name not in STEP_METRICS and value is not None}
            self.state.log_history[-1] = last | self.state.log_history[-1]

    def _add_metric(self, name: str, value: float) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _add_maximum(self, name: str, value: float) -> None:
        """Keep the maximum since the last log line; TRL logs the mean of a list, here of one value."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics[name] = [max([*metrics[name], value])]

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Add dev accuracies, which involve no reward, to TRL's rewards on sampled answers."""
        self._rollout_of_step = ("", 0)  # repeated evaluations of a step sample the same
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        measured = self.dev_metrics(self._tokenizer, metric_key_prefix) if self.questions else {}
        return output._replace(metrics={**(output.metrics or {}), **measured})


def are_medqa_rewards(reward_funcs: Any) -> bool:
    """Whether these are MedQA's two rewards, which the default weights are for."""
    one_each = isinstance(reward_funcs, list) and len(reward_funcs) == len(REWARD_WEIGHTS)
    return one_each and isinstance(reward_funcs[1], LengthPenalty)


def has_tied_head(model: str | PreTrainedModel, args: PureGRPOConfig) -> bool:
    """Whether a model, or the configuration of one to load, ties its head to the embedding."""
    if not isinstance(model, str):
        return bool(model.config.get_text_config().tie_word_embeddings)
    given = cast(dict[str, Any], args.model_init_kwargs or {})
    revision, trusted = given.get("revision"), given.get("trust_remote_code", args.trust_remote_code)
    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trusted)
    return bool(config.get_text_config().tie_word_embeddings)
