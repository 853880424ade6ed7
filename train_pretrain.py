r"""Pretrain Pure on a mixture of text that is exact in tokens. Research model, not for clinical use.

    pure pretrain --config recipes/a100_2day/pretrain.yaml
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml \
        train_pretrain.py --config recipes/a100_2day/pretrain.yaml

The first is for one GPU or a CPU, the second for several GPUs. The same command resumes a stopped run.
"""

import sys
from pathlib import Path

from transformers import set_seed
from transformers.training_args import OptimizerNames

from modeling_pure import PureForCausalLM
from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.training_data import open_training_data
from modeling_pure.errors import run_script
from modeling_pure.medqa.card import dev_evaluations
from modeling_pure.medqa.formats import taught_formats, teach_formats
from modeling_pure.medqa.tasks import MEDQA
from modeling_pure.recipe import Recipe, RecipeParser
from modeling_pure.tokenizer import load_document_tokenizer
from modeling_pure.training.arguments import ModelArguments, PureTrainingArguments, model_config
from modeling_pure.training.checkpoint import complete_step
from modeling_pure.training.curves import DEV_ACCURACIES, Panel
from modeling_pure.training.run import Run, refusals_as_input_errors, rehearse
from modeling_pure.training.run_folder import MetricsFile
from modeling_pure.training.throughput import training_memory
from modeling_pure.training.trainer import PureTrainer
from modeling_pure.training.trainer_options import seed_of_data


def main(argv: list[str] | None = None) -> None:
    """Pretrain as `argv` states, by default the command line."""
    model_args, data_args, training_args, recipe = parse_arguments(sys.argv[1:] if argv is None else argv)
    with Run.open(training_args) as run:
        if run.finished(recipe):
            return
        with refusals_as_input_errors():
            trainer = build_trainer(model_args, data_args, training_args, run.checkpoint)
            rehearse(trainer)
        run.start(trainer, recipe, "Pretraining Pure", describe_run(trainer))
        trainer.train(run.checkpoint)
        finish(trainer, run)


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, PureTrainingArguments, Recipe]:
    """The arguments and the merged recipe; raises `InputError` for what can be checked without data."""
    parser = RecipeParser((ModelArguments, DataArguments, PureTrainingArguments), description=__doc__)
    model_args, data_args, training_args = parser.parse_recipe(argv)
    recipe = parser.merged_recipe((model_args, data_args, training_args))
    sequences = training_args.batch_plan(data_args.max_seq_length).sequences_per_step
    model_config(model_args, data_args.max_seq_length)
    data_args.check_sources()
    sources = {source.name: source.facts() for source in data_args.mixture}
    return model_args, data_args, training_args, recipe.resolve(sources=sources, sequences_per_step=sequences)


def build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: PureTrainingArguments,
    checkpoint: Path | None,
) -> PureTrainer:
    """Check the input and build the trainer; writes nothing."""
    tokenizer = load_document_tokenizer(data_args.tokenizer_name_or_path)
    config = model_config(model_args, data_args.max_seq_length, tokenizer)
    if formats := [name for source in data_args.mixture for name in source.answer_formats or {}]:
        teach_formats(config, formats)
    plan = training_args.batch_plan(data_args.max_seq_length)
    rank, workers = training_args.process_index, training_args.dataloader_num_workers
    seed = seed_of_data(training_args)
    dataset, validation, questions = open_training_data(
        data_args, tokenizer, seed, plan.micro_batch_size, rank, plan.world_size, workers
    )
    set_seed(training_args.seed)
    trainer = PureTrainer(
        model=PureForCausalLM(config),
        args=training_args,
        train_dataset=dataset,
        eval_dataset=validation,
        document_mask=data_args.document_mask,
        questions=questions,
        processing_class=tokenizer,
        callbacks=[MetricsFile(training_args.output_dir)],
    )
    if checkpoint:
        trainer.restore(checkpoint)
    steps = training_args.max_steps - (complete_step(checkpoint) if checkpoint else 0)
    dataset.check_length(steps * plan.sequences_per_step)
    return trainer


def describe_run(trainer: PureTrainer) -> dict[str, str]:
    """The start-up block: sizes, data and cost of the run."""
    args, config, mixture = trainer.args, trainer.model.config, trainer.train_dataset
    length, parameters = mixture.sequence_length, trainer.model.num_parameters()
    tokens = args.max_steps * trainer.tokens_per_step
    outside = {row["source"] for row in trainer.eval_dataset} - set(mixture.names)
    return {
        "model": f"{parameters:,} parameters, vocabulary {config.vocab_size:,}",
        "tokens": f"{tokens:,}, {args.max_steps:,} x {trainer.tokens_per_step:,} (sequences of {length})",
        **mixture.describe(tokens),
        "validation": f"{len(trainer.eval_dataset)} sequences every {args.eval_steps:g} steps"
        + (f", outside the mixture: {', '.join(sorted(outside))}" if outside else "")
        + (f"; {len(trainer.questions)} MedQA dev questions" if trainer.questions else ""),
        "optimizer": "Muon and AdamW" if args.optimizer == "muon" else OptimizerNames(args.optim).value,
        "compute": trainer.throughput.cost(tokens),
        "memory": training_memory(config, parameters, args, trainer.plan.micro_batch_size * length),
    }


def finish(trainer: PureTrainer, run: Run) -> None:
    """Validate, and save the model with its card and curves."""
    best, _, metric = trainer.best_saved()
    metrics = trainer.evaluate()
    args, mixture, step = trainer.args, trainer.train_dataset, trainer.state.global_step
    logged = [line for line in trainer.state.log_history if "tokens" in line]
    made_from = {
        "parameters": f"{trainer.model.num_parameters():,}",
        "tokens": f"{step * trainer.tokens_per_step:,}",
        **{
            f"tokens of {source.name} ({float(source.weight):.0%})": f"{logged[-1][f'tokens/{source.name}']:,}"
            for source in (mixture.sources if logged else [])
        },
        "answer formats taught": ", ".join(taught_formats(trainer.model.config)) or "none",
        "decontaminated": mixture.decontaminated,
        "recipe": f"{step:,} steps of {trainer.tokens_per_step:,} tokens, {args.optimizer}, "
        f"learning rate {args.learning_rate:g}, seed {args.seed}; all of it in recipe.yaml",
    }
    results = {
        **{name.removeprefix("eval_"): f"{value:.4f}" for name, value in metrics.items()},
        "best checkpoint": f"{best.name} ({metric:.4f})" if best else "none",
    }
    exams = [path for source in mixture.sources if source.format == "medqa" for path in source.paths]
    evaluations = dev_evaluations(trainer.questions, exams, metrics) if trainer.questions else []
    of_sources = {name: name.removeprefix("eval_loss/") for name in metrics if name.startswith("eval_loss/")}
    panels = [
        Panel("Loss (nats per token)", {"loss": "training", "eval_loss": "validation"}),
        Panel("Validation loss (nats per token)", of_sources),
        Panel("MedQA dev questions answered right", DEV_ACCURACIES, "share", MEDQA.chance),
        Panel("Speed (tokens per second)", {"tokens_per_second": "all devices"}, "zero"),
    ]
    run.finish(trainer, "Pure, pretrained", "Pretraining", made_from, results, evaluations, panels)


if __name__ == "__main__":
    run_script(main, "train_pretrain.py")
