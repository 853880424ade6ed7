r"""Pretrain Pure on a mixture of text that is exact in tokens. Research model, not for clinical use.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml \
        train_pretrain.py --config recipes/a100_2day/pretrain.yaml

The same command again continues from the last complete checkpoint.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed
from transformers.training_args import OptimizerNames

from modeling_pure import PureForCausalLM
from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.estimate import tokens_per_epoch
from modeling_pure.data.held_out import (
    describe_exams,
    describe_files,
    open_sources,
    outside_documents,
    split_questions,
    validation_mixture,
    validation_source_sequences,
)
from modeling_pure.data.mixture import Mixture
from modeling_pure.data.pretokenized import PretokenizedMixture
from modeling_pure.data.sources import Source, parse_sources, parse_validation_sources
from modeling_pure.data.states import TokenSequence, TrainingData
from modeling_pure.data.tokenizer import DocumentTokenizer
from modeling_pure.errors import InputError, run_script
from modeling_pure.medqa.card import dev_evaluations
from modeling_pure.medqa.formats import describe_formats, taught_formats, teach_formats
from modeling_pure.medqa.questions import Question
from modeling_pure.recipe import Recipe, RecipeParser
from modeling_pure.tokenizer import load_document_tokenizer
from modeling_pure.training.arguments import ModelArguments, PureTrainingArguments, model_config
from modeling_pure.training.checkpoint import complete_step
from modeling_pure.training.run import Run, refusals_as_input_errors, rehearse
from modeling_pure.training.run_folder import MetricsFile
from modeling_pure.training.throughput import model_flops, training_memory
from modeling_pure.training.trainer import PureTrainer
from modeling_pure.training.trainer_options import seed_of_data
from modeling_pure.training.validation import metrics_in_words


def main(argv: list[str] | None = None) -> None:
    """Arguments, data, model, training, and what the run leaves behind."""
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
    """The arguments and the merged recipe, with all that can be checked without data."""
    parser = RecipeParser((ModelArguments, DataArguments, PureTrainingArguments), description=__doc__)
    model_args, data_args, training_args = parser.parse_recipe(argv)
    recipe = parser.merged_recipe((model_args, data_args, training_args))
    plan = training_args.batch_plan(data_args.max_seq_length)
    model_config(model_args, data_args.max_seq_length)
    sources = parse_sources(data_args.sources)
    parse_validation_sources(data_args.validation_sources, sources)
    recipe = recipe.resolve(sources=source_facts(sources), sequences_per_step=plan.sequences_per_step)
    return model_args, data_args, training_args, recipe


def source_facts(sources: list[Source]) -> dict[str, dict[str, Any]]:
    """Every field of every source, also those that a recipe leaves out."""
    return {source.name: {**asdict(source), "weight": float(source.weight)} for source in sources}


def build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: PureTrainingArguments,
    checkpoint: Path | None,
) -> PureTrainer:
    """Check and build everything; nothing is written before all of the input has been found good."""
    tokenizer = load_document_tokenizer(data_args.tokenizer_name_or_path)
    config = model_config(model_args, data_args.max_seq_length, tokenizer)
    sources = parse_sources(data_args.sources)
    if formats := [name for source in sources for name in source.answer_formats or {}]:
        teach_formats(config, formats)
    outside = parse_validation_sources(data_args.validation_sources, sources)
    dataset, held_out = build_data(sources, data_args, training_args, tokenizer)
    documents = outside_documents(outside, data_args)
    held_out += validation_source_sequences(documents, DocumentTokenizer(tokenizer), data_args)
    if isinstance(dataset, Mixture):
        dataset.hold_out(documents)
    set_seed(training_args.seed)
    trainer = PureTrainer(
        model=PureForCausalLM(config),
        args=training_args,
        train_dataset=dataset,
        eval_dataset=held_out,
        document_mask=data_args.document_mask,
        questions=dev_questions(sources, data_args),
        processing_class=tokenizer,
        callbacks=[MetricsFile(training_args.output_dir)],
    )
    if checkpoint:
        trainer.restore(checkpoint)
    if isinstance(dataset, PretokenizedMixture):
        steps = training_args.max_steps - (complete_step(checkpoint) if checkpoint else 0)
        dataset.check_rows(steps * trainer.plan.sequences_per_step)
    return trainer


def build_data(
    sources: list[Source],
    data_args: DataArguments,
    training_args: PureTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Mixture | PretokenizedMixture, list[TokenSequence[Any]]]:
    """The rows to train on, of this rank, and the held-out rows."""
    seed = seed_of_data(training_args)
    plan = training_args.batch_plan(data_args.max_seq_length)
    this_rank = (plan.micro_batch_size, training_args.process_index, plan.world_size)
    if data_args.pretokenized_dir:
        packed = PretokenizedMixture(sources, tokenizer, data_args, seed, *this_rank)
        return packed, packed.validation_sequences()
    mixture = Mixture(open_sources(sources, data_args, seed), tokenizer, data_args, seed, *this_rank)
    mixture.check_readers(training_args.dataloader_num_workers)
    held_out = validation_mixture(
        mixture.opened, mixture.tokenize, data_args.max_seq_length, data_args.validation_sequences
    )
    return mixture, held_out


def dev_questions(sources: list[Source], data_args: DataArguments) -> list[Question]:
    """The questions to answer at each validation: the first ones of the dev splits of the medqa sources."""
    if not data_args.medqa_dev_questions:
        return []
    exams = [source for source in sources if source.format == "medqa"]
    questions = [question for exam in exams for question in split_questions(exam, data_args.grpo_holdout)[1]]
    if not questions:
        raise InputError("medqa_dev_questions: the mixture has no medqa source")
    return questions[: data_args.medqa_dev_questions]


def describe_run(trainer: PureTrainer) -> dict[str, str]:
    """The start-up block: what will run, how much of it, and what it needs."""
    args, config, mixture = trainer.args, trainer.model.config, trainer.train_dataset
    length = mixture.sequence_length
    parameters, peak = trainer.model.num_parameters(), trainer.throughput.peak
    tokens = args.max_steps * trainer.tokens_per_step
    petaflops = tokens * model_flops(trainer.model, length) / 1e15
    compute = f"{petaflops:,.0f}" if petaflops >= 10 else f"{petaflops:.3g}"
    outside = {row["source"] for row in trainer.eval_dataset} - set(mixture.names)
    muon = "Muon for the layers, AdamW for the rest"
    return {
        "model": f"{parameters:,} parameters, vocabulary {config.vocab_size:,}",
        "tokens": f"{tokens:,}, {args.max_steps:,} x {trainer.tokens_per_step:,} (sequences of {length})",
        **describe_sources(mixture, tokens),
        **describe_text_files(mixture),
        **describe_answers(mixture),
        "validation": f"{len(trainer.eval_dataset)} sequences every {args.eval_steps:g} steps"
        + (f", outside the mixture: {', '.join(sorted(outside))}" if outside else "")
        + (f"; {len(trainer.questions)} MedQA dev questions" if trainer.questions else ""),
        "optimizer": muon if args.optimizer == "muon" else OptimizerNames(args.optim).value,
        "compute": f"{compute} PFLOP (6N + 12LhS); log lines and the progress bar show the hours left",
        "speed": "tokens per second in the log lines"
        + (f", and MFU of {peak:,.0f} TFLOP/s (dense bf16)" if peak else "; no MFU, the device's peak is unknown"),
        "memory": training_memory(config, parameters, args, trainer.plan.micro_batch_size * length),
    }


def describe_sources(mixture: TrainingData[Any], tokens: int) -> dict[str, str]:
    """Each source's share of the run, and how often the run will read it."""
    shares = {f"  {s.name}": f"{float(s.weight):6.1%}  {int(tokens * s.weight):15,} tokens" for s in mixture.sources}
    if isinstance(mixture, PretokenizedMixture):
        shares["packed rows"] = f"{mixture.num_rows:,} in {mixture.folder}"
    if not isinstance(mixture, Mixture):
        return shares
    for one in mixture.opened:
        passes = float(tokens * one.source.weight) / tokens_per_epoch(one, mixture.tokenize)
        capped = one.source.max_epochs is not None and passes > one.source.max_epochs
        shares[f"  {one.source.name}"] += f"  about {passes:,.1f} passes over {', '.join(one.source.paths)}" + (
            f", capped at {one.source.max_epochs}: the others get the rest" if capped else ""
        )
    return {**shares, "decontaminated": guarded(mixture)}


def describe_text_files(mixture: TrainingData[Any]) -> dict[str, str]:
    """The files of each text source, and what was left out."""
    files = describe_files(mixture.opened) if isinstance(mixture, Mixture) else {}
    return {f"files of {name}": described for name, described in files.items()}


def describe_answers(mixture: TrainingData[Any]) -> dict[str, str]:
    """The answer formats of each medqa source."""
    if isinstance(mixture, Mixture):
        exams = describe_exams(mixture.opened)
    else:
        exams = {one.name: describe_formats(one.answer_formats) for one in mixture.sources if one.answer_formats}
    return {f"answers of {name}": described for name, described in exams.items()}


def guarded(mixture: TrainingData[Any]) -> str:
    """Which questions no document of the mixture may hold."""
    if not isinstance(mixture, Mixture):
        return "when its rows were written"
    guard = mixture.guard
    return f"{len(guard.questions):,} questions, {guard.unchecked} of them too short" if guard else "none"


def finish(trainer: PureTrainer, run: Run) -> None:
    """Final validation; then the model, its card and the curves."""
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
        "decontaminated": guarded(mixture),
        "recipe": f"{step:,} steps of {trainer.tokens_per_step:,} tokens, {args.optimizer}, "
        f"learning rate {args.learning_rate:g}, seed {args.seed}; complete in recipe.yaml",
    }
    results = {
        "validation loss (nats per token)": f"{metrics['eval_loss']:.4f}",
        **metrics_in_words(metrics),
        "best checkpoint": f"{best.name} ({metric:.4f})" if best else "none",
    }
    exams = [path for source in mixture.sources if source.format == "medqa" for path in source.paths]
    evaluations = dev_evaluations(trainer.questions, exams, metrics) if trainer.questions else []
    panels = {"loss (nats per token)": ["loss", "eval_loss"], "tokens per second": ["tokens_per_second"]}
    panels["validation loss by source"] = [name for name in metrics if name.startswith("eval_loss/")]
    run.finish(trainer, "Pure, pretrained", "Pretraining", made_from, results, evaluations, panels)


if __name__ == "__main__":
    run_script(main, "train_pretrain.py")
