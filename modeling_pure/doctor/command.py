"""Check this machine and a recipe before a run of days. Research use only.

    pure doctor [--config recipes/a100_2day/pretrain.yaml] [--quick]

Takes the options of `pure pretrain` and reads, builds and writes as it does, but leaves nothing behind. The table
shows what passed, warnings, failures with their cures, and what was skipped; the exit code is 1 if a check failed. On
a machine with several GPUs set CUDA_VISIBLE_DEVICES=0.
"""

import sys
from dataclasses import dataclass
from functools import partial

from rich.text import Text
from tqdm import tqdm

from ..console import print_rich, titled_table
from ..data.arguments import DataArguments
from ..options import option
from ..recipe import RecipeParser
from ..training.arguments import ModelArguments, PureTrainingArguments
from . import machine, model, texts
from .context import FAIL, PASS, SKIPPED, WARN, Check, Context, Finding, on_hub

RECIPE = "recipes/a100_2day/pretrain.yaml"
STYLES = {PASS: "green", WARN: "yellow", FAIL: "bold red", SKIPPED: "dim"}
FOLDER_CURE = "set --output_dir to a folder that you may write to"
MODEL_CURE = "if out of memory, see GPU above; otherwise change the key named here, or use another torch or driver"


@dataclass
class DoctorArguments:
    """The options of this command besides the recipe."""

    quick: bool = option(False, "do not measure the training speed")


def main() -> int:
    """Run all checks and print the table; 1 if a check failed."""
    context = read_context(sys.argv[1:])
    # Before any check: wrong sources, presets or lengths are input errors, as in a run.
    run = f"{context.parameters:,} parameters, {context.tokens:,} tokens, into '{context.training.output_dir}'"
    progress = tqdm(checks(context), desc="checks", leave=False, disable=None)
    findings = {check.name: check.run(context) for check in progress}
    print_findings(f"Doctor: {run}", findings)
    return int(any(finding.status == FAIL for finding in findings.values()))


def read_context(argv: list[str]) -> Context:
    """The recipe of the command line; raises `InputError` if no run could start with it."""
    if not any(argument.partition("=")[0] in ("--config", "--help", "-h") for argument in argv):
        argv = ["--config", RECIPE, *argv]
    parser = RecipeParser((DoctorArguments, ModelArguments, DataArguments, PureTrainingArguments), __doc__)
    doctor, model_args, data_args, training_args = parser.parse_recipe(argv)
    return Context(model_args, data_args, training_args, doctor.quick)


def checks(context: Context) -> list[Check]:
    """All checks in order: the machine, everything that the run reads, the model."""
    found = [
        Check("torch", machine.check_torch),
        Check("packages", machine.check_packages),
        Check("GPU", machine.check_gpu),
        Check("data workers", machine.check_workers),
        Check("output_dir", machine.check_output_dir, FOLDER_CURE),
        Check("disk", machine.check_disk, FOLDER_CURE),
        Check("monitoring", machine.check_monitoring),
        Check("Hub", texts.check_hub),
        Check("token", texts.check_token, "change the key named here, or use another token"),
        Check("tokenizer", texts.check_tokenizer, "set another tokenizer_name_or_path or model_overrides.vocab_size"),
    ]
    if context.data.pretokenized_dir:
        cure = "`pure pretokenize` continues it"
        found.append(Check("pretokenized_dir", texts.check_pretokenized, cure))
    for look, sources in ((texts.check_source, context.sources_read), (texts.check_outside, context.data.outside)):
        for source in sources:
            terms = "; if the data set is gated, accept the terms on its page, then hf auth login"
            cure = f"--{source.key}.path PATH" + (terms if any(map(on_hub, source.paths)) else "")
            found.append(Check(source.key, partial(look, source=source), cure))
    if any(source.format == "text" for source in context.sources_read):
        found.append(Check("files", texts.check_validation, "set other paths, or remove the file from one of them"))
    if context.questions_read:
        cure = "--decontaminate PATHS, of files or data sets in MedQA's format"
        found.append(Check("decontaminate", texts.check_questions, cure))
    return [
        *found,
        Check("model", model.check_model),
        Check("forward pass", model.check_forward, MODEL_CURE),
        Check("throughput", model.check_throughput, MODEL_CURE),
    ]


def print_findings(title: str, findings: dict[str, Finding]) -> None:
    """Print the table, and the number of findings by status."""
    table = titled_table(title)
    for head in ("", "check", "found"):
        table.add_column(head, overflow="fold")
    for name, finding in findings.items():
        found = Text(finding.found)
        if finding.cure:
            found.append(f"\ncure: {finding.cure}", style="italic")
        table.add_row(Text(finding.status, style=STYLES[finding.status]), Text(name), found)
    print_rich(table)
    statuses = [finding.status for finding in findings.values()]
    print(", ".join(f"{statuses.count(status)} {status}" for status in STYLES if status in statuses))
