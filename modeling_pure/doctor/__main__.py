"""Look at this machine and a recipe before a run of days. Research use only.

    python -m modeling_pure.doctor [--config recipes/a100_2day/pretrain.yaml] [--quick]

Takes what train_pretrain.py takes, and reads, builds and writes as it would; nothing is left behind. Each line of the
table is a pass, a warning, a failure with its cure, or was skipped; the exit code is 1 where something failed. Of
several GPUs it looks at the one that CUDA_VISIBLE_DEVICES=0 chooses.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from ..console import print_rich
from ..data.arguments import DataArguments
from ..errors import run_script
from ..recipe import RecipeParser
from ..training.arguments import ModelArguments, PureTrainingArguments
from . import machine, model, texts
from .context import FAIL, PASS, SKIPPED, WARN, Context, Finding

RECIPE = "recipes/a100_2day/pretrain.yaml"
STYLES = {PASS: "green", WARN: "yellow", FAIL: "bold red", SKIPPED: "dim"}
Check = tuple[str, Callable[[Context], Finding]]


@dataclass
class DoctorArguments:
    """What this command is told beside the recipe."""

    quick: bool = field(default=False, metadata={"help": "do not time steps of training"})


def main() -> int:
    """Arguments, checks, table; 1 where a check failed."""
    context = read_context(sys.argv[1:])
    # Built here once: what is wrong with sources, preset or lengths is bad input, as it is to a run.
    run = f"{context.parameters:,} parameters, {context.tokens:,} tokens, into '{context.training.output_dir}'"
    findings = {}
    progress = tqdm(checks(context), desc="checks", leave=False, disable=None)
    for name, check in progress:
        progress.set_description(name)
        findings[name] = check(context)
    print_findings(f"Doctor: {run}", findings)
    return int(any(finding.status == FAIL for finding in findings.values()))


def read_context(argv: list[str]) -> Context:
    """The recipe of the command line; `InputError` where no run could begin with it."""
    if not any(argument.partition("=")[0] in ("--config", "--help", "-h") for argument in argv):
        argv = ["--config", RECIPE, *argv]
    parser = RecipeParser((DoctorArguments, ModelArguments, DataArguments, PureTrainingArguments), __doc__)
    doctor, model_args, data_args, training_args = parser.parse_recipe(argv)
    return Context(model_args, data_args, training_args, doctor.quick)


def checks(context: Context) -> list[Check]:
    """All checks in their order, by name."""
    return [
        ("torch", machine.check_torch),
        ("packages", machine.check_packages),
        ("GPU", machine.check_gpu),
        ("data workers", machine.check_workers),
        ("output_dir", machine.check_output_dir),
        ("disk", machine.check_disk),
        ("monitoring", machine.check_monitoring),
        ("Hub", texts.check_hub),
        ("token", texts.check_token),
        ("tokenizer", texts.check_tokenizer),
        *text_checks(context),
        ("model", model.check_model),
        ("forward pass", model.check_forward),
        ("throughput", model.check_throughput),
    ]


def text_checks(context: Context) -> list[Check]:
    """A check for everything that the run reads."""
    return [
        *([("pretokenized_dir", texts.check_pretokenized)] if context.data.pretokenized_dir else []),
        *((one.key, partial(texts.check_source, source=one)) for one in context.sources_read),
        *((one.key, partial(texts.check_outside, source=one)) for one in context.outside),
        *([("files", texts.check_held_out)] if any(one.format == "text" for one in context.sources_read) else []),
        *([("decontaminate", texts.check_questions)] if context.questions_read else []),
    ]


def print_findings(title: str, findings: dict[str, Finding]) -> None:
    """The table, and how many of each kind."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for head in ("", "check", "found"):
        table.add_column(head, overflow="fold")
    for name, finding in findings.items():
        style = STYLES[finding.status]
        found = Text(finding.found)
        if finding.cure:
            found.append(f"\ncure: {finding.cure}", style="italic")
        table.add_row(Text(finding.status, style=style), Text(name), found)
    print_rich(table)
    statuses = [finding.status for finding in findings.values()]
    print(", ".join(f"{statuses.count(status)} {status}" for status in STYLES if status in statuses))


if __name__ == "__main__":
    run_script(main, "modeling_pure.doctor")
