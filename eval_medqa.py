"""Measure a model on MedQA, and say what has to stand beside its accuracy. Research use, not clinical.

    python eval_medqa.py --config recipes/a100_2day/eval.yaml

Log-likelihoods are lm-evaluation-harness's, in fp32. The folder it fills explains itself: report.html, report.md,
eval.json, predictions.jsonl. A run that was stopped goes on with the same command; nothing is scored twice. Compare
such folders with `python -m modeling_pure.medqa.compare`.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from rich.progress import track
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

import modeling_pure  # noqa: F401  registers the model type "pure"
from modeling_pure.console import DISCLAIMER, print_block
from modeling_pure.data.tokenizer import load_tokenizer
from modeling_pure.errors import InputError, first_line, run_script
from modeling_pure.medqa.arguments import EvalArguments
from modeling_pure.medqa.card import card_evaluation
from modeling_pure.medqa.evaluation import Inputs, evaluate, read_inputs
from modeling_pure.medqa.journal import Item
from modeling_pure.medqa.permutations import ORDERS
from modeling_pure.medqa.report import print_report, write_report
from modeling_pure.medqa.results import write_evaluation
from modeling_pure.medqa.schema import Results
from modeling_pure.medqa.scorers import Asked
from modeling_pure.medqa.scoring import context_length
from modeling_pure.model_card import add_evaluation
from modeling_pure.recipe import RecipeParser
from modeling_pure.training.checkpoint import check_model


def main() -> None:
    """Arguments, questions, model, scores, report."""
    (args,) = RecipeParser((EvalArguments,), description=__doc__).parse_recipe(sys.argv[1:])
    check_model("model_name_or_path", args.model_name_or_path)
    inputs = read_inputs(args)
    asked = build(args)
    describe_run(args, inputs, asked)
    results, predictions, journal = evaluate(args, inputs, asked, progress)
    folder = Path(args.output_dir)
    write_report(folder, results)
    write_evaluation(folder, results, predictions)
    journal.file.unlink()
    show(args, results)


def build(args: EvalArguments) -> Asked:
    """The model in fp32, its tokenizer, and how it is asked."""
    model, tokenizer = load_model(args), load_tokenizer("model_name_or_path", args.model_name_or_path)
    context = context_length(model.config, tokenizer)
    if args.scorer == "generate" and args.max_new_tokens >= context:
        raise InputError(f"max_new_tokens: {args.max_new_tokens} leave no room for a prompt in {context}")
    return Asked(
        model,
        tokenizer,
        args.data_set,
        args.batch_size,
        args.num_samples,
        args.temperature,
        args.top_p,
        args.max_new_tokens,
        args.length_penalty_min_tokens,
        args.seed,
    )


def load_model(args: EvalArguments) -> PreTrainedModel:
    """The model in fp32: in bf16 about 3 % of MedQA's questions tie, and ties go to the earlier letter."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=args.trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        message = first_line(error)
        raise InputError(f"model_name_or_path: cannot load '{args.model_name_or_path}': {message}") from error
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def describe_run(args: EvalArguments, inputs: Inputs, asked: Asked) -> None:
    """The start-up block: what is asked, how much of it, and what stands beside it."""
    parameters = asked.model.num_parameters()
    prompts = [args.data_set.prompt(question) for question in inputs.questions]
    tokens = sum(map(len, asked.tokenizer(prompts).input_ids)) * len(ORDERS[args.permutations])
    print_block(
        inputs.data["title"],
        {
            "model": f"{args.model_name_or_path}, {parameters:,} parameters",
            "questions": f"{len(inputs.questions):,} ({args.split} of {inputs.data['path']})",
            "scorer": f"{args.scorer}, {args.permutations} order(s) of the options",
            "tokens": f"{tokens:,} of prompts, about {2 * parameters * tokens / 1e15:.3g} PFLOP to read them",
            "memory": f"{4 * parameters / 1e9:.2f} GB of weights (fp32); a forward pass has {args.batch_size} prompts",
            "device": str(asked.model.device),
            "beside it": ", ".join(inputs.others),
            **({"contamination": args.contamination} if args.contamination else {}),
            "folder": args.output_dir,
            "note": DISCLAIMER,
        },
    )


def progress(records: Iterable[Item], total: int) -> Iterable[Item]:
    """A bar with the time left."""
    return track(records, description="scoring", total=total)


def show(args: EvalArguments, results: Results) -> None:
    """The table in the terminal, and the accuracy in the model's card."""
    print_report(results)
    if args.update_card and add_evaluation(args.model_name_or_path, card_evaluation(results)):
        print(f"model card: {args.model_name_or_path}/README.md has this accuracy now")
    print(f"report: {args.output_dir}/report.html (report.md, eval.json, predictions.jsonl)")
    print(DISCLAIMER)


if __name__ == "__main__":
    run_script(main, "eval_medqa.py")
