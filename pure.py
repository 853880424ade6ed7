"""The command line `pure`. Only the command that is run is imported, so the help page needs no torch."""

import sys
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

# By what one wants to do: each command, the module whose `main` it runs, and its line in the help page.
GROUPS = {
    "Start": {
        "demo": ("modeling_pure.demo.stages", "pretrain, evaluate, GRPO, evaluate: a tiny model, minutes on a CPU"),
        "doctor": ("modeling_pure.doctor.command", "check this machine and a recipe before a long run"),
    },
    "Prepare data": {
        "inspect": ("modeling_pure.commands.inspect", "look at a recipe's mixture: shares, lengths, speed, samples"),
        "decontaminate": ("modeling_pure.commands.decontaminate", "find evaluation questions in the training text"),
        "pretokenize": ("modeling_pure.commands.pretokenize", "write the sequences once, so that training only reads"),
    },
    "Train": {
        "pretrain": ("train_pretrain", "pretrain on a mixture of text"),
        "grpo": ("train_grpo", "train on MedQA with GRPO, or with cross entropy as its baseline"),
    },
    "Evaluate": {
        "eval": ("eval_medqa", "measure a model on MedQA, with baselines and intervals"),
        "compare": ("modeling_pure.medqa.compare", "compare evaluations of the same questions"),
        "general": ("modeling_pure.general", "score a model on GPT-2's six benchmarks"),
    },
    "Share": {
        "export": ("modeling_pure.export", "write a checkpoint as a Llama or Qwen3, or such a model as Pure"),
    },
}
MODULES = {name: module for group in GROUPS.values() for name, (module, _) in group.items()}
PAGE = """usage: pure COMMAND [--option VALUE ...]

Train and evaluate Pure, a small language model for USMLE questions. Research only, not for clinical use.
{commands}

Example, in a clone of the repository:
  pure pretrain --config recipes/local/pretrain.yaml --max_steps 100

`pure COMMAND --help` explains a command and its options. README.md and docs/ in the repository explain the rest."""


def main() -> NoReturn:
    """Run the command that `sys.argv` names, and exit with its code; 2 if there is no such command."""
    name, *options = sys.argv[1:] or [""]
    if name in ("", "-h", "--help"):
        print(help_page())
        sys.exit(0 if name else 2)
    if name not in MODULES:
        (nearest,) = get_close_matches(name, MODULES, n=1, cutoff=0)
        refuse(f"no command '{name}'; did you mean '{nearest}'? `pure --help` lists all")
    try:
        command = import_module(MODULES[name])
    except ModuleNotFoundError as error:
        refuse(f"{name} needs the package '{error.name}'; pip install 'modeling_pure[train]'")
    from modeling_pure.errors import run_script  # imports torch

    sys.argv = [f"pure {name}", *options]  # as usage, errors and launches.jsonl show it
    run_script(command.main, sys.argv[0])


def refuse(message: str) -> NoReturn:
    """Print an error of one line, and exit with 2."""
    sys.stderr.write(f"pure: error: {message}\n")
    sys.exit(2)


def help_page() -> str:
    """All commands, a line each, by group."""
    lines = []
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<15}{line}" for name, (_, line) in commands.items())]
    return PAGE.format(commands="\n".join(lines))


if __name__ == "__main__":
    main()
