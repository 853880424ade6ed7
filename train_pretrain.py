r"""Pretrain Pure on a mixture of text that is exact in tokens. Research model, not for clinical use.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml \
        train_pretrain.py --config recipes/a100_2day/pretrain.yaml

The same command again continues from the last complete checkpoint.
"""

import sys
from pathlib import Path

from transformers import set_seed
from transformers.training_args import OptimizerNames

from modeling_pure import PureForCausalLM
from modeling_pure.console import DISCLAIMER, print_block
from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.training_data import open_training_data
from modeling_pure.errors import run_script
from modeling_pure.medqa.card import dev_evaluations
from modeling_pure.medqa.formats import taught_formats, teach_formats
from modeling_pure.model_card import write_model_card
from modeling_pure.recipe import RecipeParser
from modeling_pure.tokenizer import load_document_tokenizer
from modeling_pure.training.arguments import ModelArguments, PureTrainingArguments, model_config
from modeling_pure.training.callbacks import METRICS_FILE, MetricsFile
from modeling_pure.training.checkpoint import already_finished, complete_step
from modeling_pure.training.hub import check_hub, checkpoint_to_resume, hub_facts
from modeling_pure.training.kernels import describe_attention
from modeling_pure.training.launch import describe_precision, describe_processes, naming_lost_ranks, run_lock
from modeling_pure.training.plots import plot_metrics
from modeling_pure.training.publishing import push_finished
from modeling_pure.training.rehearsal import refusals_as_input_errors, rehearse
from modeling_pure.training.report import model_flops, training_memory
from modeling_pure.training.run_folder import Recipe, check_recipe, note_launch, write_recipe
from modeling_pure.training.trainer import PureTrainer, resume_data
from modeling_pure.training.trainer_options import seed_of_data


def main(argv: list[str] | None = None) -> None:
    """Arguments, data, model, training, and what the run leaves behind."""
    model_args, data_args, training_args, recipe = parse_arguments(sys.argv[1:] if argv is None else argv)
    with naming_lost_ranks(training_args), run_lock(training_args):
        train(model_args, data_args, training_args, recipe)


def train(
    model_args: ModelArguments, data_args: DataArguments, training_args: PureTrainingArguments, recipe: Recipe
) -> None:
    """The run, in a folder that is its own."""
    check_hub(training_args)
    checkpoint = checkpoint_to_resume(training_args)
    sources = {source.name: source.facts() for source in data_args.mixture}
    facts = {**recipe, "sources": sources, "sequences_per_step": training_args.sequences_per_step}
    if checkpoint:
        check_recipe(checkpoint, facts, training_args.allow_recipe_change)
    if already_finished(training_args.output_dir, training_args.max_steps):
        push_finished(training_args)
        return
    with refusals_as_input_errors():
        trainer = build_trainer(model_args, data_args, training_args, checkpoint, facts)
        rehearse(trainer)
    if trainer.is_world_process_zero():
        describe_run(trainer, checkpoint)
        record_start(training_args, recipe, complete_step(checkpoint) if checkpoint else 0)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finish(trainer)


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, PureTrainingArguments, Recipe]:
    """The arguments and the merged recipe, with all that can be checked without data."""
    parser = RecipeParser((ModelArguments, DataArguments, PureTrainingArguments), description=__doc__)
    model_args, data_args, training_args = parser.parse_recipe(argv)
    recipe = parser.merged_recipe((model_args, data_args, training_args))
    training_args.share_out(data_args.max_seq_length)
    model_config(model_args, data_args.max_seq_length)
    data_args.check_sources()
    return model_args, data_args, training_args, recipe


def build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: PureTrainingArguments,
    checkpoint: Path | None,
    recipe: Recipe,
) -> PureTrainer:
    """Check and build everything; nothing is written before all of the input has been found good."""
    tokenizer = load_document_tokenizer(data_args.tokenizer_name_or_path)
    config = model_config(model_args, data_args.max_seq_length, tokenizer)
    if formats := [name for source in data_args.mixture for name in source.answer_formats or {}]:
        teach_formats(config, formats)
    rank = (training_args.train_batch_size, training_args.process_index, training_args.world_size)
    dataset, validation, questions = open_training_data(
        data_args, tokenizer, seed_of_data(training_args), *rank, training_args.dataloader_num_workers
    )
    if checkpoint and (change := resume_data(checkpoint, dataset, training_args)) and training_args.process_index == 0:
        print(change)
    steps = training_args.max_steps - (complete_step(checkpoint) if checkpoint else 0)
    dataset.check_length(steps * training_args.sequences_per_step)
    set_seed(training_args.seed)
    model = PureForCausalLM(config)
    return PureTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        eval_dataset=validation,
        document_mask=data_args.document_mask,
        questions=questions,
        recipe=recipe,
        processing_class=tokenizer,
        callbacks=[MetricsFile(training_args.output_dir)],
    )


def describe_run(trainer: PureTrainer, checkpoint: Path | None) -> None:
    """The start-up block: what will run, how much of it, and what it needs."""
    args, config, mixture = trainer.args, trainer.model.config, trainer.train_dataset
    length = mixture.sequence_length
    parameters = trainer.model.num_parameters()
    tokens = args.max_steps * trainer.tokens_per_step
    petaflops = tokens * model_flops(trainer.model, length) / 1e15
    compute = f"{petaflops:,.0f}" if petaflops >= 10 else f"{petaflops:.3g}"
    print_block(
        "Pretraining Pure",
        {
            "model": f"{parameters:,} parameters, vocabulary {config.vocab_size:,}",
            "tokens": f"{tokens:,}, {args.max_steps:,} x {trainer.tokens_per_step:,} (sequences of {length})",
            **mixture.describe(tokens),
            "validation": describe_validation(trainer),
            "optimizer": "Muon for the layers, AdamW for the rest"
            if args.optimizer == "muon"
            else OptimizerNames(args.optim).value,
            "compute": f"{compute} PFLOP (6N + 12LhS); log lines and the progress bar say the hours left",
            "speed": describe_peak(trainer.throughput.peak),
            "memory": training_memory(config, parameters, args, length),
            "precision": describe_precision(trainer.accelerator)
            + (", layers compiled" if args.compile_layers else ""),
            "attention": describe_attention(trainer.model, args.device, bool(args.bf16)),
            "device": describe_processes(args, trainer.accelerator),
            "run folder": args.output_dir,
            **hub_facts(trainer.args),
            "begins": f"from {checkpoint}" if checkpoint else "at step 0",
            "note": DISCLAIMER,
        },
    )


def describe_validation(trainer: PureTrainer) -> str:
    """What is measured, and when."""
    outside = {one["source"] for one in trainer.eval_dataset} - set(trainer.train_dataset.names)
    return (
        f"{len(trainer.eval_dataset)} sequences every {trainer.args.eval_steps:g} steps"
        + (f", outside the mixture: {', '.join(sorted(outside))}" if outside else "")
        + (f"; {len(trainer.questions)} MedQA dev questions" if trainer.questions else "")
    )


def describe_peak(peak: float | None) -> str:
    """What the MFU of the log lines is a share of."""
    if peak is None:
        return "tokens per second in the log lines; no MFU, for the peak of this device is not known"
    return f"tokens per second and MFU in the log lines: FLOPs as above, of {peak:,.0f} TFLOP/s (dense bf16)"


def record_start(args: PureTrainingArguments, recipe: Recipe, step: int) -> None:
    """Write down what this start of the run is made of, in the run's folder."""
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(folder, recipe)
    note_launch(folder, step, args.world_size, args.device)


def finish(trainer: PureTrainer) -> None:
    """Final validation, the model in the run's folder, its card and the curves."""
    best, _, metric = trainer.best_saved()
    metrics = trainer.evaluate()
    output_dir = trainer.args.output_dir
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    results = {
        "validation loss (nats per token)": f"{metrics['eval_loss']:.4f}",
        **validation_facts(metrics),
        "best checkpoint": f"{best.name} ({metric:.4f})" if best else "none",
    }
    write_card(trainer, results, metrics)
    panels = {"loss (nats per token)": ["loss", "eval_loss"], "tokens per second": ["tokens_per_second"]}
    panels["validation loss by source"] = [name for name in metrics if name.startswith("eval_loss/")]
    plot_metrics(Path(output_dir) / METRICS_FILE, Path(output_dir) / "curves.png", panels)
    print_block("Pretraining done", {**results, "model, card, curves.png, metrics.jsonl": output_dir})
    trainer.save_state()  # last: it says that the folder holds all of the above
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def write_card(trainer: PureTrainer, results: dict[str, str], metrics: dict[str, float]) -> None:
    """The model's card: what it was trained on, by which recipe, and what came out."""
    args, mixture = trainer.args, trainer.train_dataset
    logged = [line for line in trainer.state.log_history if "tokens" in line]
    facts = {
        "parameters": f"{trainer.model.num_parameters():,}",
        "tokens": f"{trainer.state.global_step * trainer.tokens_per_step:,}",
        **{
            f"tokens of {source.name} ({float(source.weight):.0%})": f"{logged[-1][f'tokens/{source.name}']:,}"
            for source in (mixture.sources if logged else [])
        },
        "answer formats taught": ", ".join(taught_formats(trainer.model.config)) or "none",
        "decontaminated": mixture.decontaminated,
        "recipe": f"{trainer.state.global_step:,} steps of {trainer.tokens_per_step:,} tokens, "
        f"{args.optimizer}, learning rate {args.learning_rate:g}, seed {args.seed}; whole in recipe.yaml",
        **results,
    }
    evaluations = []
    if trainer.questions:
        exams = [path for source in mixture.sources if source.format == "medqa" for path in source.paths]
        evaluations = dev_evaluations(trainer.questions, exams, metrics)
    write_model_card(args.output_dir, "Pure, pretrained", trainer.model.config, {"Pretraining": facts}, evaluations)


def validation_facts(metrics: dict[str, float]) -> dict[str, str]:
    """The lines of the report on single sources."""
    facts = {}
    for name in [name.removeprefix("eval_loss/") for name in metrics if name.startswith("eval_loss/")]:
        facts[f"  {name}"] = f"{metrics[f'eval_loss/{name}']:.4f}"
        if bits := metrics.get(f"eval_bits_per_byte/{name}"):
            facts[f"  {name}"] += f", {bits:.4f} bits per byte"
        if ratio := metrics.get(f"eval_perplexity_ratio/{name}"):
            facts[f"  {name}"] += f"; outside the mixture, {ratio:.2f} times its perplexity"
    if "eval_medqa_accuracy" in metrics:
        facts["MedQA dev accuracy (chance 25 %)"] = f"{metrics['eval_medqa_accuracy']:.1%}"
    if "eval_medqa_text_accuracy" in metrics:
        facts["MedQA dev accuracy by text"] = f"{metrics['eval_medqa_text_accuracy']:.1%}"
    return facts


if __name__ == "__main__":
    run_script(main, "train_pretrain.py")
