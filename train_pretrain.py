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
from modeling_pure.console import DISCLAIMER, print_block
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
    sources = parse_sources(data_args.sources)
    facts = {**recipe, "sources": source_facts(sources), "sequences_per_step": training_args.sequences_per_step}
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
    parse_validation_sources(data_args.validation_sources, parse_sources(data_args.sources))
    return model_args, data_args, training_args, recipe


def source_facts(sources: list[Source]) -> dict[str, dict[str, Any]]:
    """Every field of every source, also those that a recipe leaves out."""
    return {source.name: {**asdict(source), "weight": float(source.weight)} for source in sources}


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
    sources = parse_sources(data_args.sources)
    if formats := [name for source in sources for name in source.answer_formats or {}]:
        teach_formats(config, formats)
    outside = parse_validation_sources(data_args.validation_sources, sources)
    dataset, held_out = build_data(sources, data_args, training_args, tokenizer)
    documents = outside_documents(outside, data_args)
    held_out += validation_source_sequences(documents, DocumentTokenizer(tokenizer), data_args)
    if isinstance(dataset, Mixture):
        dataset.hold_out(documents)
    if checkpoint and (change := resume_data(checkpoint, dataset, training_args)) and training_args.process_index == 0:
        print(change)
    if isinstance(dataset, PretokenizedMixture):
        steps = training_args.max_steps - (complete_step(checkpoint) if checkpoint else 0)
        dataset.check_rows(steps * training_args.sequences_per_step)
    set_seed(training_args.seed)
    model = PureForCausalLM(config)
    return PureTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        eval_dataset=held_out,
        document_mask=data_args.document_mask,
        questions=dev_questions(sources, data_args),
        recipe=recipe,
        processing_class=tokenizer,
        callbacks=[MetricsFile(training_args.output_dir)],
    )


def build_data(
    sources: list[Source],
    data_args: DataArguments,
    training_args: PureTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Mixture | PretokenizedMixture, list[TokenSequence[Any]]]:
    """The rows to train on, of this rank, and the held-out rows."""
    seed = seed_of_data(training_args)
    this_rank = (training_args.train_batch_size, training_args.process_index, training_args.world_size)
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
            **describe_sources(mixture, tokens),
            **describe_text_files(mixture),
            **describe_answers(mixture),
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
    outside = {row["source"] for row in trainer.eval_dataset} - set(trainer.train_dataset.names)
    return (
        f"{len(trainer.eval_dataset)} held-out rows every {trainer.args.eval_steps:g} steps"
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
        "decontaminated": guarded(mixture),
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
