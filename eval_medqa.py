"""Evaluate a model on MedQA, with baselines and intervals for every accuracy. Research use, not clinical.

    pure eval --config recipes/a100_2day/eval.yaml

Questions are asked in the format that the model was taught, the headline, and by letter as in lm-evaluation-harness,
in fp32. The output folder holds report.html, report.md, eval.json and predictions.jsonl; `pure compare` compares such
folders. Several processes (`accelerate launch eval_medqa.py`, torchrun) share the questions. The same command, with
any number of processes, resumes a stopped run without scoring anything twice.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoConfig

import modeling_pure  # noqa: F401  registers the model type "pure"
from modeling_pure.console import DISCLAIMER, print_block
from modeling_pure.errors import run_script
from modeling_pure.loading import check_model, load_model, load_pretrained
from modeling_pure.medqa.arguments import EvalArguments
from modeling_pure.medqa.card import card_evaluation
from modeling_pure.medqa.evaluation import describe_run, evaluate, read_inputs
from modeling_pure.medqa.formats import chat_prompt
from modeling_pure.medqa.log_likelihood import context_length
from modeling_pure.medqa.report import print_report, write_report
from modeling_pure.medqa.results import write_evaluation
from modeling_pure.medqa.scorers import ScorerSettings
from modeling_pure.model_card import add_evaluation
from modeling_pure.recipe import RecipeParser
from modeling_pure.tokenizer import load_tokenizer


def main(argv: list[str] | None = None) -> None:
    """Parse, read the questions, score them, and report; only the main process prints and writes."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    processes = PartialState(cpu=not torch.cuda.is_available())
    key, name, trust = "model_name_or_path", args.model_name_or_path, args.trust_remote_code
    check_model(key, name)
    config, tokenizer = load_pretrained(key, AutoConfig, name, trust), load_tokenizer(key, name)
    plan = args.plan(config)
    sampling = args.sampling(plan, context_length(config, tokenizer))
    if args.chat:
        chat_prompt(tokenizer, "")  # raises if the tokenizer has no template
    inputs = read_inputs(args, plan.headline.name)
    model = load_model(key, name, trust)
    settings = ScorerSettings(model, tokenizer, args.data_set, args.batch_size, sampling=sampling)
    if processes.is_main_process:
        print_block(inputs.data.title, describe_run(args, inputs, settings, plan))
        if plan.warning:
            print(plan.warning)
    results, predictions, journals = evaluate(args, inputs, settings, plan)
    if processes.is_main_process:
        folder = Path(args.output_dir)
        write_report(folder, results)
        write_evaluation(folder, results, predictions)
        for journal in journals:  # only needed to resume
            journal.file.unlink()
        print_report(results)
        if args.update_card and add_evaluation(name, card_evaluation(results)):
            print(f"model card: added this accuracy to {name}/README.md")
        print(f"report: {args.output_dir}/report.html (report.md, eval.json, predictions.jsonl)", DISCLAIMER, sep="\n")
    processes.destroy_process_group()


def parse_arguments(argv: list[str]) -> EvalArguments:
    """The arguments, with all checks that need no model."""
    (args,) = RecipeParser((EvalArguments,), description=__doc__).parse_recipe(argv)
    return args


if __name__ == "__main__":
    run_script(main, "eval_medqa.py")
