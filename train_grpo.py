r"""GRPO on MedQA questions with the refinements of DeepSeek-V3.2. Research model, not for clinical use.

    pure grpo --config recipes/a100_2day/grpo.yaml
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml \
        train_grpo.py --config recipes/a100_2day/grpo.yaml

The first is for one GPU or a CPU, the second for several GPUs. The same command resumes from the last complete
checkpoint. With `--algorithm sft` the same prompts are taught by cross entropy on the right answers: the baseline that
GRPO has to be compared with.
"""

import sys
from typing import Any

from transformers import AutoConfig

from modeling_pure.errors import InputError, run_script
from modeling_pure.grpo.arguments import GRPOScriptArguments, PureGRPOConfig
from modeling_pure.grpo.build import build_trainer
from modeling_pure.grpo.preflight import print_preflight
from modeling_pure.grpo.prompts import PromptSettings
from modeling_pure.grpo.report import (
    BASELINE_PANELS,
    PANELS,
    card_evaluations,
    describe_refinements,
    memory,
    result_facts,
    step_arithmetic,
)
from modeling_pure.grpo.sft import AnswerTrainer
from modeling_pure.grpo.trainer import PureGRPOTrainer
from modeling_pure.loading import check_model, load_pretrained
from modeling_pure.medqa.card import public_name
from modeling_pure.options import check_numbers
from modeling_pure.recipe import Recipe, RecipeParser
from modeling_pure.training.run import Run, refusals_as_input_errors, rehearse
from modeling_pure.training.trainer_options import refuse

SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")  # must not change on resume


def main(argv: list[str] | None = None) -> None:
    """Train as `argv` states, by default the command line."""
    script_args, training_args, recipe = parse_arguments(sys.argv[1:] if argv is None else argv)
    with Run.open(training_args) as run:
        key, name = "model_name_or_path", script_args.model_name_or_path
        check_model(key, name)
        config = load_pretrained(key, AutoConfig, name, training_args.trust_remote_code).get_text_config()
        settings = PromptSettings.of(script_args, config)
        shape = {name: getattr(config, name, None) for name in SHAPE}
        recipe = recipe.resolve(answer_formats=settings.shares, model_shape=shape)
        if run.finished(recipe):
            return
        with refusals_as_input_errors():
            trainer = build_trainer(script_args, training_args, config, settings)
            if training_args.eval_strategy != "no":
                rehearse(trainer)
        run.start(trainer, recipe, phase(script_args), describe_run(trainer, script_args, settings))
        if trainer.is_world_process_zero():
            for warning in settings.warnings(config):
                print(warning)
        if isinstance(trainer, PureGRPOTrainer) and not run.checkpoint:
            print_preflight(trainer)
        trainer.train(run.checkpoint)
        finish(trainer, run, script_args, settings)


def parse_arguments(argv: list[str]) -> tuple[GRPOScriptArguments, PureGRPOConfig, Recipe]:
    """The arguments and the merged recipe; raises `InputError` for what can be checked without a model."""
    parser = RecipeParser((GRPOScriptArguments, PureGRPOConfig), description=__doc__)
    script_args, training_args = parser.parse_recipe(argv)
    check_numbers(training_args, max_steps=1)  # the run's prompts are prepared in advance
    refuse(training_args, {"num_train_epochs": "max_steps sets the length of a run"})
    if training_args.remove_unused_columns:
        raise InputError("remove_unused_columns: the rewards need the columns that Trainer would remove")
    plan = training_args.plan
    recipe = parser.merged_recipe((script_args, training_args))
    return script_args, training_args, recipe.resolve(prompts_per_step=plan.prompts, updates_per_rollout=plan.updates)


def phase(script_args: GRPOScriptArguments) -> str:
    """A title for what the run does."""
    return "GRPO on MedQA" if script_args.algorithm == "grpo" else "Cross entropy on MedQA's answers"


def describe_run(
    trainer: PureGRPOTrainer | AnswerTrainer, script_args: GRPOScriptArguments, settings: PromptSettings
) -> dict[str, str]:
    """The start-up block: sizes of the run, and the active refinements."""
    args = trainer.args
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    facts = {
        "model": f"{script_args.model_name_or_path}, {trainer.model.num_parameters():,} parameters, "
        f"{trained:,} of them trained",
        "answers": str(settings),
    }
    if script_args.passages:
        facts["passages"] = f"up to {script_args.num_passages} of {script_args.passages}"
    if isinstance(trainer, PureGRPOTrainer):
        questions = len({*trainer.train_dataset["digest"]})
        facts |= step_arithmetic(args, questions, script_args.length_penalty_min_tokens)
        facts |= describe_refinements(trainer)
    use = "its weights are the result" if args.load_best_model_at_end else "kept"
    return {
        **facts,
        "best checkpoint": f"by {args.metric_for_best_model} on {len(trainer.questions)} dev questions; {use}",
        "memory": memory(trainer),
    }


def finish(
    trainer: PureGRPOTrainer | AnswerTrainer, run: Run, script_args: GRPOScriptArguments, settings: PromptSettings
) -> None:
    """Save the model, merged with any adapters, with its card and curves."""
    started_from = script_args.model_name_or_path
    if script_args.lora_rank:
        adapted: Any = trainer.model  # a PeftModel
        trainer.model = adapted.merge_and_unload()
    results = {**result_facts(trainer, public_name(started_from)), "answers": str(settings)}
    if script_args.passages:
        results["passages"] = f"{script_args.num_passages} per question"
    what = phase(script_args)
    evaluations = card_evaluations(trainer, script_args.questions)
    panels = PANELS if isinstance(trainer, PureGRPOTrainer) else BASELINE_PANELS
    run.finish(trainer, f"Pure, after {what}", what, {}, results, evaluations, panels, started_from)


if __name__ == "__main__":
    run_script(main, "train_grpo.py")
