"""GRPO on MedQA questions with the refinements of DeepSeek-V3.2. Research model, not for clinical use.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml \\
        train_grpo.py --config recipes/a100_2day/grpo.yaml

The same command again continues from the last complete checkpoint.
"""

import sys
from pathlib import Path

from transformers import AutoConfig

from modeling_pure.data.tokenizer import check_vocabulary, load_tokenizer
from modeling_pure.errors import InputError, run_script
from modeling_pure.grpo.arguments import GRPOScriptArguments, PureGRPOConfig
from modeling_pure.grpo.prompts import prompt_dataset
from modeling_pure.grpo.trainer import PureGRPOTrainer, TokenBudget
from modeling_pure.medqa.questions import Question, read_questions
from modeling_pure.medqa.rewards import LengthPenalty, correct
from modeling_pure.medqa.splits import select_split
from modeling_pure.recipe import RecipeParser
from modeling_pure.training.callbacks import METRICS_FILE, MetricsFile
from modeling_pure.training.checkpoint import already_finished, callback_attributes, check_model, resume_point
from modeling_pure.training.plots import plot_metrics
from modeling_pure.training.report import DISCLAIMER, print_block, state_memory, write_model_card


def main() -> None:
    """Arguments, questions, training, and what the run leaves behind."""
    parser = RecipeParser((GRPOScriptArguments, PureGRPOConfig), description=__doc__)
    script_args, training_args = parser.parse_recipe(sys.argv[1:])
    check_model("model_name_or_path", script_args.model_name_or_path)
    checkpoint = resume_point(training_args.output_dir, training_args.resume_from_checkpoint)
    if already_finished(training_args.output_dir, training_args.max_steps):
        return
    if checkpoint:
        callback_attributes(checkpoint, TokenBudget.__name__)  # of this kind of run, or refused
    questions = grpo_questions(script_args)
    trainer = build_trainer(script_args, training_args, questions)
    if trainer.is_world_process_zero():
        describe_run(trainer, script_args, questions, checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finish(trainer, script_args)


def grpo_questions(script_args: GRPOScriptArguments) -> list[Question]:
    """The train questions that GRPO may use; never one of the dev split."""
    splits = ["holdout"] if script_args.holdout_only else ["train", "holdout"]
    questions = read_questions("questions", script_args.questions, script_args.questions_config)
    selected = select_split(questions, *splits, grpo_holdout=script_args.grpo_holdout)
    if not selected:
        raise InputError(f"grpo_holdout: {script_args.grpo_holdout} leaves no questions to train on")
    return selected


def build_trainer(
    script_args: GRPOScriptArguments, training_args: PureGRPOConfig, questions: list[Question]
) -> PureGRPOTrainer:
    """The trainer with its prompts and the two reward functions."""
    tokenizer = load_tokenizer("model_name_or_path", script_args.model_name_or_path)
    config = AutoConfig.from_pretrained(
        script_args.model_name_or_path, trust_remote_code=training_args.trust_remote_code
    )
    check_vocabulary(tokenizer, config.get_text_config().vocab_size)
    return PureGRPOTrainer(
        model=script_args.model_name_or_path,
        reward_funcs=[correct, LengthPenalty(script_args.length_penalty_min_tokens, tokenizer.eos_token_id)],
        args=training_args,
        train_dataset=prompt_dataset(
            questions, training_args.max_steps * training_args.prompts_per_step, training_args.seed
        ),
        processing_class=tokenizer,
        callbacks=[MetricsFile(training_args.output_dir)],
    )


def describe_run(
    trainer: PureGRPOTrainer, script_args: GRPOScriptArguments, questions: list[Question], checkpoint: Path | None
) -> None:
    """The start-up block: the batch arithmetic, and which refinement acts."""
    args = trainer.args
    prompts, total = args.prompts_per_step, args.max_steps * args.prompts_per_step
    budget = f"or {args.max_tokens:,} generated tokens, whichever comes first" if args.max_tokens else ""
    several_updates = args.updates_per_rollout > 1
    off_policy = "on" if several_updates else "WITHOUT EFFECT: needs several updates"
    right, short = args.reward_weights
    print_block(
        "GRPO on MedQA",
        {
            "model": f"{script_args.model_name_or_path}, {trainer.model.num_parameters():,} parameters",
            "step": f"{prompts} prompts x {args.num_generations} completions = {prompts * args.num_generations}",
            "rollout": f"{args.generation_batch_size} completions, {args.updates_per_rollout:g} update(s) on each",
            "run": f"{args.max_steps:,} steps {budget}",
            "questions": f"{len(questions):,}, asked {total / len(questions):.2f} times each",
            "completion": f"up to {args.max_completion_length} tokens at temperature {args.temperature:g}",
            "reward": f"{right:g} x correct {short:+g} x length_penalty "
            f"(of answers below {script_args.length_penalty_min_tokens} tokens)",
            "unbiased KL": "on" if args.beta and args.use_bias_correction_kl else "WITHOUT EFFECT: needs beta above 0",
            "off-policy mask": "off" if args.off_policy_mask_threshold is None else off_policy,
            "memory": state_memory(trainer.model.num_parameters()),
            "device": f"{args.device}, {args.world_size} process(es), {'bf16 autocast' if args.bf16 else 'fp32'}",
            "run folder": args.output_dir,
            "begins": f"from {checkpoint}" if checkpoint else "at step 0",
            "note": DISCLAIMER,
        },
    )


def finish(trainer: PureGRPOTrainer, script_args: GRPOScriptArguments) -> None:
    """The model in the run's folder, its card and the curves."""
    output_dir = trainer.args.output_dir
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    rewards = [line["rewards/correct/mean"] for line in trainer.state.log_history if "rewards/correct/mean" in line]
    facts = {
        "started from": script_args.model_name_or_path,
        "steps": f"{trainer.state.global_step:,}",
        "generated tokens": f"{trainer.token_budget.generated_tokens:,}",
        "share of sampled answers that were right": f"{rewards[0]:.3f} at first, {rewards[-1]:.3f} at last"
        if rewards
        else "not logged",
    }
    write_model_card(output_dir, "Pure, after GRPO on MedQA", facts)
    panels = {
        "reward": ["reward", "rewards/correct/mean"],
        "completion (tokens)": ["completions/mean_length"],
        "KL (nats per token)": ["kl"],
    }
    plot_metrics(Path(output_dir) / METRICS_FILE, Path(output_dir) / "curves.png", panels)
    print_block("GRPO done", {**facts, "model, card, curves.png, metrics.jsonl": output_dir})
    trainer.save_state()  # last: it says that the folder holds all of the above
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    run_script(main, "train_grpo.py")
