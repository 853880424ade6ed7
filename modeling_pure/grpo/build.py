"""Builds the trainer of a run: GRPO, or the cross-entropy baseline."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from peft import LoraConfig
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..errors import InputError
from ..medqa.formats import end_ids, teach_formats
from ..medqa.rewards import Correct, LengthPenalty
from ..tokenizer import check_vocabulary, end_no_prompt, load_tokenizer
from ..training.run_folder import MetricsFile
from ..training.trainer_options import seed_of_data
from .arguments import GRPOScriptArguments, PureGRPOConfig
from .prompts import PromptSettings, prompt_dataset
from .questions import questions_to_ask
from .sft import AnswerTrainer
from .trainer import PureGRPOTrainer


def build_trainer(
    script_args: GRPOScriptArguments, args: PureGRPOConfig, config: PreTrainedConfig, settings: PromptSettings
) -> PureGRPOTrainer | AnswerTrainer:
    """Build the trainer, its prompts, and the model, whose configuration records the answer formats."""
    name = script_args.model_name_or_path
    tokenizer = load_tokenizer("model_name_or_path", name, config.vocab_size)
    check_vocabulary(tokenizer, config.vocab_size)
    end_no_prompt(tokenizer)
    if args.metric_is_default:
        args.metric_for_best_model = settings.best_metric
    train, dev = questions_to_ask(script_args, args.max_completion_length, config, tokenizer, settings)
    if not dev and args.eval_strategy != "no":
        raise InputError("eval_strategy: the questions have no dev split to evaluate on; set it to no")
    seed, sampled = seed_of_data(args), replace(settings, with_answers=False)
    shared: dict[str, Any] = {
        "args": args,
        "train_dataset": prompt_dataset(
            train, args.plan.prompts_of_run(args.max_steps), seed, script_args.grpo_holdout, settings
        ),
        "eval_dataset": prompt_dataset(dev, len(dev), seed, settings=sampled) if dev else None,
        "questions": dev,
        "processing_class": tokenizer,
        "callbacks": [MetricsFile(args.output_dir)],
        "peft_config": lora(script_args),
    }
    if script_args.algorithm == "sft":
        given = cast(dict[str, Any], args.model_init_kwargs or {})  # a string has been parsed
        loading = {"dtype": "float32", "trust_remote_code": args.trust_remote_code, **given}
        model = AutoModelForCausalLM.from_pretrained(name, **loading)
        teach_formats(model.config, settings.shares)
        return AnswerTrainer(model=model, **shared)
    trainer = PureGRPOTrainer(model=name, reward_funcs=rewards(script_args, config, tokenizer), **shared)
    teach_formats(trainer.base_causal_lm.config, settings.shares)
    return trainer


def rewards(
    script_args: GRPOScriptArguments, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Callable[..., list[float]]]:
    """The rewards that `reward_weights` weights: right answers, and the length penalty."""
    ends = end_ids(config, generation_config(script_args.model_name_or_path, config), tokenizer)
    return [Correct(tokenizer, ends), LengthPenalty(script_args.length_penalty_min_tokens, tokenizer, ends)]


def generation_config(name_or_path: str, config: PreTrainedConfig) -> GenerationConfig:
    """The model's generation config, or one from its configuration; either may add tokens that end a completion."""
    try:
        return GenerationConfig.from_pretrained(name_or_path)
    except OSError:
        return GenerationConfig.from_model_config(config)


def lora(script_args: GRPOScriptArguments) -> LoraConfig | None:
    """Adapters on every linear layer of the decoder; None with rank 0."""
    if not script_args.lora_rank:
        return None
    return LoraConfig(
        r=script_args.lora_rank, lora_alpha=script_args.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
