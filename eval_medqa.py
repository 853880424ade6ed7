"""Measure a model on MedQA as lm-evaluation-harness's medqa_4options does, in fp32. Research use, not clinical.

python eval_medqa.py --config recipes/a100_2day/eval.yaml
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from rich.progress import track
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

import modeling_pure  # noqa: F401  registers the model type "pure"
from modeling_pure.data.tokenizer import load_tokenizer
from modeling_pure.errors import InputError, first_line, run_script
from modeling_pure.medqa.evaluation import (
    RESULTS_FILE,
    SCHEMA_VERSION,
    count_test_runs,
    data_facts,
    environment,
    summarise,
    write_results,
)
from modeling_pure.medqa.questions import Question, read_questions
from modeling_pure.medqa.scoring import letter_log_likelihoods
from modeling_pure.medqa.splits import select_split
from modeling_pure.recipe import RecipeParser
from modeling_pure.training.checkpoint import check_model
from modeling_pure.training.report import DISCLAIMER, print_block

SPLITS = ("test", "dev", "all")


@dataclass
class EvalArguments:
    """Model, questions and where the result goes."""

    model_name_or_path: str = field(
        default="runs/grpo", metadata={"help": "any causal language model: a folder or a Hub id"}
    )
    questions: str = field(
        default="GBaker/MedQA-USMLE-4-options", metadata={"help": "MedQA questions: a Hub id or local files"}
    )
    questions_config: str | None = field(default=None, metadata={"help": "the Hub data set's configuration"})
    split: str = field(
        default="test",
        metadata={
            "help": "test: the Hub's test split, or local files that are it; dev: the 10 %% held out of a train file; "
            "all: every row"
        },
    )
    batch_size: int = field(default=16, metadata={"help": "questions in a forward pass"})
    output_dir: str = field(default="runs/eval", metadata={"help": "folder for results.json and predictions.jsonl"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run Python code that comes with the model"})


def main() -> None:
    """Arguments, questions, model, scores, report."""
    (args,) = RecipeParser((EvalArguments,), description=__doc__).parse_recipe(sys.argv[1:])
    check_model("model_name_or_path", args.model_name_or_path)
    questions = evaluation_questions(args)
    model = load_model(args)
    tokenizer = load_tokenizer("model_name_or_path", args.model_name_or_path)
    start = time.perf_counter()
    scores = letter_log_likelihoods(model, tokenizer, questions, args.batch_size, progress=track)
    seconds = time.perf_counter() - start
    folder = Path(args.output_dir)
    results = {
        "schema_version": SCHEMA_VERSION,
        "model": args.model_name_or_path,
        "scorer": "letter, medqa_4options prompt, fp32",
        "data": data_facts(args.questions, args.split, questions),
        "metrics": summarise(questions, scores),
        "seconds": round(seconds, 2),
        "test_runs": count_test_runs(folder / RESULTS_FILE) + (args.split == "test"),
        "environment": environment(),
        "note": DISCLAIMER,
    }
    write_results(folder, results, questions, scores)
    report(results, folder)


def evaluation_questions(args: EvalArguments) -> list[Question]:
    """The questions of the split that is asked for."""
    if args.split not in SPLITS:
        raise InputError(f"split: expected one of {list(SPLITS)}, found '{args.split}'")
    hub_split = "test" if args.split == "test" else "train"
    questions = read_questions("questions", args.questions, args.questions_config, hub_split)
    questions = select_split(questions, "dev") if args.split == "dev" else questions
    if not questions:
        raise InputError(f"split: '{args.questions}' has no dev questions")
    return questions


def load_model(args: EvalArguments) -> PreTrainedModel:
    """The model in fp32: in bf16 about 3 % of MedQA's questions tie, and ties go to the earlier letter."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path, dtype=torch.float32, trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        message = first_line(error)
        raise InputError(f"model_name_or_path: cannot load '{args.model_name_or_path}': {message}") from error
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def report(results: dict, folder: Path) -> None:
    """Print accuracy with what has to stand beside it."""
    metrics, data = results["metrics"], results["data"]
    low, high = metrics["wilson_95"]
    always = ", ".join(f"{letter} {share:.2%}" for letter, share in metrics["always"].items())
    predicted = ", ".join(f"{letter} {share:.1%}" for letter, share in metrics["predicted"].items())
    print_block(
        "MedQA, four options",
        {
            "model": results["model"],
            "questions": f"{data['n']:,} ({data['split']} of {data['path']})",
            "accuracy": f"{metrics['accuracy']:.2%} +- {metrics['standard_error']:.2%} (standard error)",
            "95 % interval": f"{low:.2%} to {high:.2%} (Wilson)",
            "chance": "25.00%",
            "always one letter": always,
            "model's letters": predicted,
            "test split run": f"{results['test_runs']} time(s) into this folder",
            "time": f"{results['seconds']:.1f} s",
            "written": f"{folder}/results.json, predictions.jsonl",
            "note": results["note"],
        },
    )


if __name__ == "__main__":
    run_script(main, "eval_medqa.py")
