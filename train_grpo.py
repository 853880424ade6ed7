r"""GRPO on MedQA questions with the refinements of DeepSeek-V3.2. Research model, not for clinical use.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml \
        train_grpo.py --config recipes/a100_2day/grpo.yaml

The same command again continues from the last complete checkpoint. With `--algorithm sft` the same prompts are taught
by cross entropy on the right answers: the baseline that GRPO has to be compared with.
"""

import sys
from dataclasses import replace
from functools import partial
from typing import Any, cast

from peft import LoraConfig
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from modeling_pure.console import print_block
from modeling_pure.errors import InputError, run_script
from modeling_pure.grpo.arguments import GRPOScriptArguments, PureGRPOConfig
from modeling_pure.grpo.preflight import preflight
from modeling_pure.grpo.prompts import (
    Asking,
    default_formats,
    open_books,
    prompt_dataset,
    questions_that_fit,
    say,
    teachable,
)
from modeling_pure.grpo.report import (
    PANELS,
    describe_refinements,
    memory,
    result_facts,
    step_arithmetic,
)
from modeling_pure.grpo.sft import AnswerTrainer
from modeling_pure.grpo.trainer import PureGRPOTrainer, model_config
from modeling_pure.medqa.card import dev_evaluations, public_name
from modeling_pure.medqa.formats import end_ids, teach_formats
from modeling_pure.medqa.log_likelihood import context_length
from modeling_pure.medqa.passages import Library
from modeling_pure.medqa.questions import Question, read_questions, select_split
from modeling_pure.medqa.rewards import Correct, LengthPenalty
from modeling_pure.model_card import CardEvaluation
from modeling_pure.options import check_numbers
from modeling_pure.recipe import Recipe, RecipeParser
from modeling_pure.tokenizer import check_vocabulary, end_no_prompt, load_tokenizer
from modeling_pure.training.checkpoint import check_model
from modeling_pure.training.run import Run, refusals_as_input_errors, rehearse
from modeling_pure.training.run_folder import MetricsFile
from modeling_pure.training.trainer_options import refuse, seed_of_data

SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")  # of the model, which a resume needs again


def main(argv: list[str] | None = None) -> None:
    """Arguments, questions, training, and what the run leaves behind."""
    script_args, training_args, recipe = parse_arguments(sys.argv[1:] if argv is None else argv)
    with Run.open(training_args) as run:
        check_model("model_name_or_path", script_args.model_name_or_path)
        config = model_config(script_args.model_name_or_path, training_args)
        shares = cast(dict[str, float], script_args.answer_formats)  # a string has been parsed
        asking = Asking(shares or default_formats(config), script_args.chat, script_args.algorithm == "sft")
        shape = {name: getattr(config, name, None) for name in SHAPE}
        recipe = recipe.resolve(answer_formats=asking.shares, model_shape=shape)
        if run.finished(recipe):
            return
        with refusals_as_input_errors():
            trainer = build_trainer(script_args, training_args, config, asking)
            if training_args.eval_strategy != "no":
                rehearse(trainer)
        run.start(trainer, recipe, phase(script_args), describe_run(trainer, script_args, asking))
        if trainer.is_world_process_zero():
            for warning in asking.warnings(config):
                print(warning)
        if isinstance(trainer, PureGRPOTrainer) and not run.checkpoint:
            look_before(trainer)
        trainer.train(run.checkpoint)
        finish(trainer, run, script_args, asking)


def parse_arguments(argv: list[str]) -> tuple[GRPOScriptArguments, PureGRPOConfig, Recipe]:
    """The arguments and the merged recipe, with all that can be checked without a model."""
    parser = RecipeParser((GRPOScriptArguments, PureGRPOConfig), description=__doc__)
    script_args, training_args = parser.parse_recipe(argv)
    check_numbers(training_args, max_steps=1)  # the prompts of the run are listed before it starts
    refuse(training_args, {"num_train_epochs": "max_steps is the length of a run"})
    if training_args.remove_unused_columns:
        raise InputError("remove_unused_columns: the rewards read the columns that Trainer would remove")
    plan = training_args.plan
    recipe = parser.merged_recipe((script_args, training_args))
    return script_args, training_args, recipe.resolve(prompts_per_step=plan.prompts, updates_per_rollout=plan.updates)


def phase(script_args: GRPOScriptArguments) -> str:
    """What the run does, as people read it."""
    return "GRPO on MedQA" if script_args.algorithm == "grpo" else "Cross entropy on MedQA's answers"


def read_splits(script_args: GRPOScriptArguments, questions: list[Question]) -> tuple[list[Question], list[Question]]:
    """The questions that may be trained on, and those of the dev split that the best checkpoint is chosen by."""
    splits = ["holdout"] if script_args.holdout_only else ["train", "holdout"]
    selected = select_split(questions, *splits, grpo_holdout=script_args.grpo_holdout)
    if not selected:
        raise InputError(f"grpo_holdout: {script_args.grpo_holdout} leaves no questions to train on")
    return selected, select_split(questions, "dev")[: script_args.medqa_dev_questions]


def build_trainer(
    script_args: GRPOScriptArguments, training_args: PureGRPOConfig, config: PreTrainedConfig, asking: Asking
) -> PureGRPOTrainer | AnswerTrainer:
    """The trainer with its prompts, whose model says what it is taught."""
    tokenizer = load_tokenizer("model_name_or_path", script_args.model_name_or_path, config.vocab_size)
    check_vocabulary(tokenizer, config.vocab_size)
    end_no_prompt(tokenizer)
    if training_args.metric_is_default:
        training_args.metric_for_best_model = asking.best_metric
    questions, dev_questions = questions_to_ask(script_args, training_args, config, tokenizer, asking)
    num_prompts = training_args.plan.prompts_of_run(training_args.max_steps)
    seed, holdout = seed_of_data(training_args), script_args.grpo_holdout
    dev_prompts = partial(prompt_dataset, dev_questions, len(dev_questions), seed)
    shared = {
        "args": training_args,
        "train_dataset": prompt_dataset(questions, num_prompts, seed, holdout, asking),
        "eval_dataset": dev_prompts(asking=replace(asking, with_answers=False)) if dev_questions else None,
        "questions": dev_questions,
        "processing_class": tokenizer,
        "callbacks": [MetricsFile(training_args.output_dir)],
    }
    if not dev_questions and training_args.eval_strategy != "no":
        raise InputError("eval_strategy: the questions hold none of the dev split to answer; say no")
    if script_args.algorithm == "sft":
        given = cast(dict[str, Any], training_args.model_init_kwargs or {})
        settings = {"dtype": "float32", "trust_remote_code": training_args.trust_remote_code, **given}
        model = AutoModelForCausalLM.from_pretrained(script_args.model_name_or_path, **settings)
        teach_formats(model.config, asking.shares)
        return AnswerTrainer(model=model, peft_config=lora(script_args), **shared)
    ends = end_ids(config, generation_config(script_args.model_name_or_path, config), tokenizer)
    trainer = PureGRPOTrainer(
        model=script_args.model_name_or_path,
        reward_funcs=[Correct(tokenizer, ends), LengthPenalty(script_args.length_penalty_min_tokens, tokenizer, ends)],
        peft_config=lora(script_args),
        **shared,
    )
    teach_formats(trainer.base_causal_lm.config, asking.shares)
    return trainer


def questions_to_ask(
    script_args: GRPOScriptArguments,
    training_args: PureGRPOConfig,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    asking: Asking,
) -> tuple[list[Question], list[Question]]:
    """The questions of `read_splits` that fit into the context beside a completion, with passages if asked for."""
    longest = training_args.max_completion_length
    room = context_length(config, tokenizer) - longest
    questions = read_questions("questions", script_args.questions, script_args.questions_config)
    splits = read_splits(script_args, questions)
    if script_args.passages:
        library = Library.read("passages", script_args.passages, questions)
        say(f"passages: {library.describe()}")
        splits = open_books(library, script_args.num_passages, splits, tokenizer, room, asking)
    train, dev = splits
    fitting = questions_that_fit(train, tokenizer, room, asking)
    return teachable(fitting, tokenizer, longest, asking), dev and questions_that_fit(dev, tokenizer, room, asking)


def generation_config(name_or_path: str, config: PreTrainedConfig) -> GenerationConfig:
    """The model's own, or that of its configuration: either may name more tokens that end a completion."""
    try:
        return GenerationConfig.from_pretrained(name_or_path)
    except OSError:
        return GenerationConfig.from_model_config(config)


def lora(script_args: GRPOScriptArguments) -> LoraConfig | None:
    """Adapters on every linear layer of the decoder, where a rank is given."""
    if not script_args.lora_rank:
        return None
    return LoraConfig(
        r=script_args.lora_rank,
        lora_alpha=script_args.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def describe_run(
    trainer: PureGRPOTrainer | AnswerTrainer, script_args: GRPOScriptArguments, asking: Asking
) -> dict[str, str]:
    """The start-up block: the batch arithmetic, and which refinement acts."""
    args = trainer.args
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    facts = {
        "model": f"{script_args.model_name_or_path}, {trainer.model.num_parameters():,} parameters, "
        f"{trained:,} of them trained",
        "answers": str(asking),
    }
    if script_args.passages:
        facts["passages"] = f"up to {script_args.num_passages} of {script_args.passages}"
    if isinstance(trainer, PureGRPOTrainer):
        questions = len({*trainer.train_dataset["digest"]})
        facts |= step_arithmetic(args, questions, script_args.length_penalty_min_tokens)
        facts |= describe_refinements(trainer)
    best = "at the end the best weights are taken" if args.load_best_model_at_end else "the best one is kept"
    return {
        **facts,
        "chosen by": f"{args.metric_for_best_model} on {len(trainer.questions)} dev questions, {best}",
        "memory": memory(trainer),
    }


def look_before(trainer: PureGRPOTrainer) -> None:
    """Sample before the first step, and say what there is to learn from."""
    summaries = preflight(trainer)
    for found in summaries if trainer.is_world_process_zero() else []:
        print_block(f"Before the first step, {found.answer_format}", found.facts())
        print(*found.warnings(), sep="\n")


def finish(
    trainer: PureGRPOTrainer | AnswerTrainer, run: Run, script_args: GRPOScriptArguments, asking: Asking
) -> None:
    """The model, whole even where adapters were trained, its card and the curves."""
    started_from = script_args.model_name_or_path
    if script_args.lora_rank:
        adapted: Any = trainer.model  # a PeftModel
        trainer.model = adapted.merge_and_unload()
    results = {**result_facts(trainer, public_name(started_from)), "answers": str(asking)}
    if script_args.passages:
        results["passages"] = f"{script_args.num_passages} before each question"
    what = phase(script_args)
    evaluations = card_evaluations(trainer, script_args.questions)
    run.finish(trainer, f"Pure, after {what}", what, {}, results, evaluations, PANELS, started_from)


def card_evaluations(trainer: PureGRPOTrainer | AnswerTrainer, questions: str) -> list[CardEvaluation]:
    """Dev accuracies of the weights that are saved, by letter and text, where they were measured."""
    history, best = trainer.state.log_history, trainer.ends_with_best
    step = trainer.best_saved()[1] if best else trainer.state.global_step
    metrics = {name: value for line in history if line["step"] == step for name, value in line.items()}
    return dev_evaluations(
        trainer.questions, [questions], metrics, trainer.args.metric_for_best_model if best else None
    )


if __name__ == "__main__":
    run_script(main, "train_grpo.py")
