"""Measure a model on MedQA, and say what has to stand beside its accuracy. Research use, not clinical.

    python eval_medqa.py --config recipes/a100_2day/eval.yaml

Questions are asked as the model was taught, with lm-evaluation-harness's letters beside it, in fp32. The folder it
fills explains itself: report.html, report.md, eval.json, predictions.jsonl. Several processes (`accelerate launch`,
torchrun) share the questions out. A stopped run continues with the same command, with any number of processes; nothing
is scored twice. Compare such folders with `python -m modeling_pure.medqa.compare`.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from rich.progress import track
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import modeling_pure  # noqa: F401  registers the model type "pure"
from modeling_pure.console import DISCLAIMER, print_block
from modeling_pure.errors import InputError, first_line, run_script
from modeling_pure.medqa.arguments import EvalArguments
from modeling_pure.medqa.asked import Asked, Item, Sampling
from modeling_pure.medqa.card import card_evaluation
from modeling_pure.medqa.evaluation import Inputs, evaluate, read_inputs
from modeling_pure.medqa.formats import chat_prompt
from modeling_pure.medqa.formulations import Plan, make_plan
from modeling_pure.medqa.log_likelihood import context_length
from modeling_pure.medqa.permutations import ORDERS
from modeling_pure.medqa.report import print_report, write_report
from modeling_pure.medqa.results import write_evaluation
from modeling_pure.medqa.schema import Results
from modeling_pure.model_card import add_evaluation
from modeling_pure.recipe import RecipeParser
from modeling_pure.tokenizer import load_tokenizer, prompt_ids
from modeling_pure.training.checkpoint import check_model

ANSWER_TOKENS, REASONED_TOKENS = 32, 1024  # longest completions by default


def main(argv: list[str] | None = None) -> None:
    """Arguments, questions, model, scores, report; the first process prints and writes."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    processes = PartialState(cpu=not torch.cuda.is_available())
    check_model("model_name_or_path", args.model_name_or_path)
    config = load(AutoConfig, args)
    tokenizer = load_tokenizer("model_name_or_path", args.model_name_or_path)
    plan = make_plan(args, config)
    sampling = sampling_of(args, plan, context_length(config, tokenizer))
    if args.chat:
        chat_prompt(tokenizer, "")
    inputs = read_inputs(args, plan.headline.name)
    asked = Asked(load_model(args), tokenizer, args.data_set, args.batch_size, plan.headline, sampling)
    if processes.is_main_process:
        describe_run(args, inputs, asked, plan)
    results, predictions, journals = evaluate(args, inputs, asked, plan, progress)
    if processes.is_main_process:
        folder = Path(args.output_dir)
        write_report(folder, results)
        write_evaluation(folder, results, predictions)
        for journal in journals:
            journal.file.unlink()
        show(args, results)
    processes.destroy_process_group()


def parse_arguments(argv: list[str]) -> EvalArguments:
    """The arguments, with all that can be checked without a model."""
    (args,) = RecipeParser((EvalArguments,), description=__doc__).parse_recipe(argv)
    return args


def sampling_of(args: EvalArguments, plan: Plan, context: int) -> Sampling:
    """How completions are written; those with reasons are longer, but leave half of the context to the prompt.

    Raises:
        InputError: no room for a prompt.
    """
    longest = args.max_new_tokens
    written = [formulation for formulation in plan.formulations if formulation.scorer == "generate"]
    if longest is None:
        reasoned = any(formulation.answer_format == "reasoned" for formulation in written)
        longest = min(REASONED_TOKENS if reasoned else ANSWER_TOKENS, context // 2)
    if written and longest >= context:
        raise InputError(f"max_new_tokens: {longest} leave no room for a prompt in {context}")
    return Sampling(
        num_samples=args.num_samples,
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=longest,
        length_penalty_min_tokens=args.length_penalty_min_tokens,
        seed=args.seed,
    )


def load_model(args: EvalArguments) -> PreTrainedModel:
    """The model in fp32: in bf16 about 3 % of MedQA's questions tie, and ties go to the earlier letter."""
    model: PreTrainedModel = load(AutoModelForCausalLM, args, dtype=torch.float32, use_safetensors=True)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def load(kind: Any, args: EvalArguments, **options: Any) -> Any:
    """What an Auto class makes of the model's folder or Hub id; `InputError` if it cannot."""
    try:
        return kind.from_pretrained(args.model_name_or_path, trust_remote_code=args.trust_remote_code, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        message = first_line(error)
        raise InputError(f"model_name_or_path: cannot load '{args.model_name_or_path}': {message}") from error


def describe_run(args: EvalArguments, inputs: Inputs, asked: Asked, plan: Plan) -> None:
    """The start-up block: what is asked, how much of it, and what stands beside it."""
    parameters = asked.model.num_parameters()
    prompts = [args.data_set.prompt(question) for question in inputs.questions]
    orders = [len(ORDERS[args.permutations]) if each.sees_order else 1 for each in plan.formulations]
    tokens = sum(map(len, prompt_ids(asked.tokenizer, prompts))) * sum(orders)
    book = inputs.open_book
    print_block(
        inputs.data["title"],
        {
            "model": f"{args.model_name_or_path}, {parameters:,} parameters",
            "questions": f"{len(inputs.questions):,} ({args.split} of {inputs.data['path']})",
            "headline": f"{plan.headline.name}: {plan.reason}",
            "formulations": "; ".join(each.name for each in plan.formulations),
            "orders": f"{args.permutations} of the options, for letter and text",
            **({"passages": f"of {book.path}: {book.description}"} if book else {}),
            "tokens": f"{tokens:,} of prompts, about {2 * parameters * tokens / 1e15:.3g} PFLOP to read them once",
            "memory": f"{4 * parameters / 1e9:.2f} GB of weights (fp32); a forward pass has {args.batch_size} prompts",
            "device": f"{asked.model.device}, {PartialState().num_processes} process(es)",
            "beside it": ", ".join(inputs.others),
            **({"contamination": args.contamination} if args.contamination else {}),
            "folder": args.output_dir,
            "note": DISCLAIMER,
        },
    )
    if plan.warning:
        print(plan.warning)


def progress(records: Iterable[Item], total: int) -> Iterable[Item]:
    """A bar with the time left, on the first process."""
    return track(records, description="scoring", total=total, disable=not PartialState().is_main_process)


def show(args: EvalArguments, results: Results) -> None:
    """The table in the terminal, and the accuracy in the model's card."""
    print_report(results)
    if args.update_card and add_evaluation(args.model_name_or_path, card_evaluation(results)):
        print(f"model card: {args.model_name_or_path}/README.md has this accuracy now")
    print(f"report: {args.output_dir}/report.html (report.md, eval.json, predictions.jsonl)")
    print(DISCLAIMER)


if __name__ == "__main__":
    run_script(main, "eval_medqa.py")
