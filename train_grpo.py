r"""GRPO on MedQA questions with the refinements of DeepSeek-V3.2. Research model, not for clinical use.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml \
        train_grpo.py --config recipes/a100_2day/grpo.yaml

The same command again continues from the last complete checkpoint. With `--algorithm sft` the same prompts are taught
by cross entropy on the right answers: the baseline that GRPO has to be compared with.
"""

import json
import sys
from pathlib import Path
from typing import Any

from modeling_pure.console import DISCLAIMER, print_block
from modeling_pure.errors import InputError, run_script
from modeling_pure.grpo.arguments import GRPOScriptArguments, PureGRPOConfig
from modeling_pure.grpo.budget import TokenBudget
from modeling_pure.grpo.build import build_trainer, model_config
from modeling_pure.grpo.preflight import look_before
from modeling_pure.grpo.prompts import PromptSettings
from modeling_pure.grpo.report import (
    PANELS,
    card_evaluations,
    describe_refinements,
    memory,
    result_facts,
    step_arithmetic,
)
from modeling_pure.grpo.sft import AnswerTrainer
from modeling_pure.grpo.trainer import PureGRPOTrainer
from modeling_pure.medqa.card import public_name
from modeling_pure.model_card import write_model_card
from modeling_pure.options import check_numbers
from modeling_pure.recipe import RecipeParser
from modeling_pure.training.callbacks import METRICS_FILE
from modeling_pure.training.checkpoint import (
    ADAPTER_FILE,
    STATE_FILE,
    already_finished,
    callback_attributes,
    check_model,
)
from modeling_pure.training.hub import check_hub, checkpoint_to_resume, hub_facts
from modeling_pure.training.kernels import describe_attention
from modeling_pure.training.launch import describe_precision, describe_processes, naming_lost_ranks, run_lock
from modeling_pure.training.plots import plot_metrics
from modeling_pure.training.publishing import push_finished
from modeling_pure.training.rehearsal import refusals_as_input_errors, rehearse
from modeling_pure.training.trainer_options import refuse


def main(argv: list[str] | None = None) -> None:
    """Arguments, questions, training, and what the run leaves behind."""
    script_args, training_args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with naming_lost_ranks(training_args), run_lock(training_args):
        train(script_args, training_args)


def train(script_args: GRPOScriptArguments, training_args: PureGRPOConfig) -> None:
    """The run, in a folder that is its own."""
    check_model("model_name_or_path", script_args.model_name_or_path)
    check_hub(training_args)
    checkpoint = checkpoint_to_resume(training_args)
    for folder in (Path(training_args.output_dir), checkpoint):
        check_algorithm(folder, script_args.algorithm)
    if checkpoint:
        check_adapters(checkpoint, script_args.lora_rank)
    if already_finished(training_args.output_dir, training_args.max_steps):
        push_finished(training_args)
        return
    config = model_config(script_args.model_name_or_path, training_args)
    asking = PromptSettings.of(script_args, config)
    with refusals_as_input_errors():
        trainer = build_trainer(script_args, training_args, config, asking)
        if training_args.eval_strategy != "no":
            rehearse(trainer)
    if trainer.is_world_process_zero():
        describe_run(trainer, script_args, asking, checkpoint)
        for warning in asking.warnings(config):
            print(warning)
    if isinstance(trainer, PureGRPOTrainer) and not checkpoint:
        look_before(trainer)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finish(trainer, script_args, asking)


def parse_arguments(argv: list[str]) -> tuple[GRPOScriptArguments, PureGRPOConfig]:
    """The arguments, with all that can be checked without a model."""
    parser = RecipeParser((GRPOScriptArguments, PureGRPOConfig), description=__doc__)
    script_args, training_args = parser.parse_recipe(argv)
    check_numbers(training_args, max_steps=1)  # the prompts of the run are listed before it starts
    refuse(training_args, {"num_train_epochs": "max_steps is the length of a run"})
    if training_args.remove_unused_columns:
        raise InputError("remove_unused_columns: the rewards read the columns that Trainer would remove")
    return script_args, training_args


def check_algorithm(folder: Path | None, algorithm: str) -> None:
    """Refuse to go on from what another kind of run has left: GRPO's counts its tokens, the baseline's does not."""
    if folder is None or not (folder / STATE_FILE).is_file():
        return
    try:
        callbacks = json.loads((folder / STATE_FILE).read_text()).get("stateful_callbacks", {})
    except ValueError:  # cut off while a run ended; its checkpoints say what it was
        return
    if algorithm == "grpo":
        callback_attributes(folder, TokenBudget.__name__)
    elif TokenBudget.__name__ in callbacks:
        raise InputError(f"output_dir: '{folder}' was written by --algorithm grpo; give the baseline its own folder")


def check_adapters(checkpoint: Path, lora_rank: int) -> None:
    """Refuse to resume with adapters of another rank than a checkpoint's; rank 0 means all weights."""
    file = checkpoint / ADAPTER_FILE
    rank = json.loads(file.read_text())["r"] if file.is_file() else 0
    if rank != lora_rank:
        raise InputError(
            f"lora_rank: {lora_rank}, but '{checkpoint}' was written with {rank}; put it back, or take another "
            "output_dir"
        )


def describe_run(
    trainer: PureGRPOTrainer | AnswerTrainer,
    script_args: GRPOScriptArguments,
    asking: PromptSettings,
    checkpoint: Path | None,
) -> None:
    """The start-up block: the batch arithmetic, and which refinement acts."""
    args, is_grpo = trainer.args, isinstance(trainer, PureGRPOTrainer)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    print_block(
        "GRPO on MedQA" if is_grpo else "Cross entropy on MedQA's answers",
        {
            "model": f"{script_args.model_name_or_path}, {trainer.model.num_parameters():,} parameters, "
            f"{trained:,} of them trained",
            "answers": str(asking),
            **(
                {"passages": f"up to {script_args.num_passages} of {script_args.passages}"}
                if script_args.passages
                else {}
            ),
            **(
                step_arithmetic(args, len({*trainer.train_dataset["digest"]}), script_args.length_penalty_min_tokens)
                if is_grpo
                else {}
            ),
            **(describe_refinements(trainer) if isinstance(trainer, PureGRPOTrainer) else {}),
            "chosen by": f"{args.metric_for_best_model} on {len(trainer.questions)} dev questions, "
            + ("at the end the best weights are taken" if args.load_best_model_at_end else "the best one is kept"),
            "memory": memory(trainer),
            "attention": describe_attention(trainer.model, args.device, bool(args.bf16)),
            "precision": describe_precision(trainer.accelerator),
            "device": describe_processes(args, trainer.accelerator),
            "run folder": args.output_dir,
            **hub_facts(args),
            "begins": f"from {checkpoint}" if checkpoint else "at step 0",
            "note": DISCLAIMER,
        },
    )


def finish(trainer: PureGRPOTrainer | AnswerTrainer, script_args: GRPOScriptArguments, asking: PromptSettings) -> None:
    """The model in the run's folder, whole even where adapters were trained, its card and the curves."""
    output_dir, is_grpo = trainer.args.output_dir, script_args.algorithm == "grpo"
    if script_args.lora_rank:
        adapted: Any = trainer.model  # a PeftModel
        trainer.model = adapted.merge_and_unload()
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    facts = {**result_facts(trainer, script_args.model_name_or_path), "answers": str(asking)}
    if script_args.passages:
        facts["passages"] = f"{script_args.num_passages} before each question"
    phase = "GRPO on MedQA" if is_grpo else "Cross entropy on MedQA's answers"
    write_model_card(
        output_dir,
        f"Pure, after {phase}",
        trainer.model.config,
        {phase: {**facts, "started from": public_name(script_args.model_name_or_path)}},
        card_evaluations(trainer, script_args.questions),
        script_args.model_name_or_path,
    )
    plot_metrics(Path(output_dir) / METRICS_FILE, Path(output_dir) / "curves.png", PANELS)
    print_block("Done", {**facts, "model, card, curves.png, metrics.jsonl": output_dir})
    trainer.save_state()  # last: it says that the folder holds all of the above
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    run_script(main, "train_grpo.py")
