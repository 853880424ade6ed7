"""Pretrain Pure on a mixture of text that is exact in tokens. Research model, not for clinical use.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml \\
        train_pretrain.py --config recipes/a100_2day/pretrain.yaml

The same command again continues from the last complete checkpoint.
"""

import sys
from dataclasses import fields
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed

from modeling_pure import PRESETS, PureConfig, PureForCausalLM
from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.estimate import tokens_per_pass
from modeling_pure.data.held_out import open_sources, validation_mixture
from modeling_pure.data.mixture import Mixture
from modeling_pure.data.packed import PackedMixture
from modeling_pure.data.sources import parse_sources
from modeling_pure.data.tokenizer import check_vocabulary, load_tokenizer
from modeling_pure.errors import InputError, first_line, run_script
from modeling_pure.recipe import RecipeParser
from modeling_pure.training.arguments import ModelArguments, PureTrainingArguments
from modeling_pure.training.callbacks import METRICS_FILE, MetricsFile
from modeling_pure.training.checkpoint import already_finished, checkpoint_step, resume_point
from modeling_pure.training.plots import plot_metrics
from modeling_pure.training.report import DISCLAIMER, print_block, state_memory, training_flops, write_model_card
from modeling_pure.training.trainer import PureTrainer, resume_data


def main() -> None:
    """Arguments, data, model, training, and what the run leaves behind."""
    parser = RecipeParser((ModelArguments, DataArguments, PureTrainingArguments), description=__doc__)
    model_args, data_args, training_args = parser.parse_recipe(sys.argv[1:])
    checkpoint = resume_point(training_args.output_dir, training_args.resume_from_checkpoint)
    if already_finished(training_args.output_dir, checkpoint, training_args.max_steps):
        return
    trainer = build_trainer(model_args, data_args, training_args, checkpoint)
    if trainer.is_world_process_zero():
        describe_run(trainer, checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finish(trainer)


def build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: PureTrainingArguments,
    checkpoint: Path | None,
) -> PureTrainer:
    """Check and build everything; nothing is written before all of the input has been found good."""
    tokenizer = load_tokenizer("tokenizer_name_or_path", data_args.tokenizer_name_or_path)
    config = build_config(model_args, data_args, tokenizer)
    dataset, held_out = build_data(data_args, training_args, tokenizer)
    if checkpoint and (change := resume_data(checkpoint, dataset, training_args)) and training_args.process_index == 0:
        print(change)
    if isinstance(dataset, PackedMixture):
        rows = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
        steps = training_args.max_steps - (checkpoint_step(checkpoint) if checkpoint else 0)
        dataset.check_rows(steps * rows)
    set_seed(training_args.seed)
    model = PureForCausalLM(config)
    return PureTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        eval_dataset=held_out,
        document_mask=data_args.document_mask,
        processing_class=tokenizer,
        callbacks=[MetricsFile(training_args.output_dir)],
    )


def build_data(data_args: DataArguments, training_args: PureTrainingArguments, tokenizer) -> tuple:
    """The rows to train on, of this rank, and the held-out rows."""
    sources = parse_sources(data_args.sources)
    seed = training_args.seed
    this_rank = (training_args.train_batch_size, training_args.process_index, training_args.world_size)
    if data_args.packed_dir:
        packed = PackedMixture(sources, tokenizer, data_args, seed, *this_rank)
        return packed, packed.validation_rows()
    mixture = Mixture(open_sources(sources, data_args, seed), tokenizer, data_args, seed, *this_rank)
    mixture.check_readers(training_args.dataloader_num_workers)
    held_out = validation_mixture(
        mixture.opened, mixture.tokenize, data_args.max_seq_length, data_args.validation_rows
    )
    return mixture, held_out


def build_config(model_args: ModelArguments, data_args: DataArguments, tokenizer) -> PureConfig:
    """The preset's configuration, fitted to the tokenizer."""
    given = model_args.model_overrides or {}
    for unknown in set(given) - {field.name for field in fields(PureConfig)}:
        raise InputError(f"model_overrides.{unknown}: PureConfig has no such field")
    preset = PRESETS.get(model_args.preset, {})
    vocab_size = given.get("vocab_size", preset.get("vocab_size", PureConfig.vocab_size))
    if isinstance(vocab_size, int):  # PureConfig says what is wrong with any other
        check_vocabulary(tokenizer, vocab_size)
    fitted = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "num_real_tokens": len(tokenizer),
    }
    try:
        config = PureConfig.from_preset(model_args.preset, **{**fitted, **given})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"preset: {first_line(error.__cause__ or error)}") from error
    if data_args.max_seq_length > config.max_position_embeddings:
        raise InputError(
            f"max_seq_length: {data_args.max_seq_length} is longer than the model's {config.max_position_embeddings}"
        )
    return config


def describe_run(trainer: PureTrainer, checkpoint: Path | None) -> None:
    """The start-up block: what will run, how much of it, and what it needs."""
    args, config, mixture = trainer.args, trainer.model.config, trainer.train_dataset
    parameters = trainer.model.num_parameters()
    tokens = args.max_steps * trainer.tokens_per_step
    embedding = config.vocab_size * config.hidden_size
    flops = training_flops(parameters, embedding, config.num_hidden_layers, config.hidden_size, mixture.row_length)
    petaflops = tokens * flops / 1e15
    compute = f"{petaflops:,.0f}" if petaflops >= 10 else f"{petaflops:.3g}"
    print_block(
        "Pretraining Pure",
        {
            "model": f"{parameters:,} parameters, vocabulary {config.vocab_size:,}",
            "tokens": f"{tokens:,}, {args.max_steps:,} x {trainer.tokens_per_step:,} (rows of {mixture.row_length})",
            **describe_sources(mixture, tokens),
            "validation": f"{len(trainer.eval_dataset)} held-out rows every {args.eval_steps:g} steps",
            "compute": f"{compute} PFLOP (6N + 12LhS); the progress bar shows the time left",
            "memory": state_memory(parameters),
            "precision": "bf16 autocast, fp32 weights" if args.bf16 else "fp32",
            "device": f"{args.device}, {args.world_size} process(es)",
            "run folder": args.output_dir,
            "begins": f"from {checkpoint}" if checkpoint else "at step 0",
            "note": DISCLAIMER,
        },
    )


def describe_sources(mixture: Mixture | PackedMixture, tokens: int) -> dict[str, str]:
    """Each source's share of the run, and how often the run will read it."""
    shares = {f"  {s.name}": f"{float(s.weight):6.1%}  {int(tokens * s.weight):15,} tokens" for s in mixture.sources}
    if isinstance(mixture, PackedMixture):
        return {**shares, "packed rows": f"{mixture.num_rows:,} in {mixture.folder}"}
    for one in mixture.opened:
        passes = float(tokens * one.source.weight) / tokens_per_pass(one, mixture.tokenize)
        capped = one.source.max_epochs is not None and passes > one.source.max_epochs
        shares[f"  {one.source.name}"] += f"  about {passes:,.1f} passes over {', '.join(one.source.paths)}" + (
            f", capped at {one.source.max_epochs}: the others get the rest" if capped else ""
        )
    unchecked = mixture.guard.unchecked if mixture.guard else 0
    guarded = f"{len(mixture.guard.questions):,} questions, {unchecked} of them too short" if mixture.guard else "none"
    return {**shares, "decontaminated": guarded}


def finish(trainer: PureTrainer) -> None:
    """Final validation, the model in the run's folder, its card and the curves."""
    metrics = trainer.evaluate()
    output_dir = trainer.args.output_dir
    trainer.save_model()
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    facts = {
        "parameters": f"{trainer.model.num_parameters():,}",
        "tokens trained on": f"{trainer.state.global_step * trainer.tokens_per_step:,}",
        "mixture": ", ".join(f"{s.name} {float(s.weight):.0%}" for s in trainer.train_dataset.sources),
        "validation loss (nats per token)": f"{metrics['eval_loss']:.4f}",
        "best checkpoint": f"{trainer.state.best_model_checkpoint} ({trainer.state.best_metric:.4f})"
        if trainer.state.best_metric
        else "none",
    }
    write_model_card(output_dir, "Pure, pretrained", facts)
    panels = {"loss (nats per token)": ["loss", "eval_loss"], "tokens per second": ["tokens_per_second"]}
    plot_metrics(Path(output_dir) / METRICS_FILE, Path(output_dir) / "curves.png", panels)
    print_block("Pretraining done", {**facts, "model, card, curves.png, metrics.jsonl": output_dir})
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    run_script(main, "train_pretrain.py")
