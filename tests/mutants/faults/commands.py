"""Faults in recipes, errors and commands."""

from tests.mutants.faults.fault import Fault

FAULTS = [
    Fault(
        "bad input ends with another exit code",
        "modeling_pure/errors.py",
        "{RankLost: 1, InputError: 2, RunStopped: 3}",
        "{RankLost: 1, InputError: 1, RunStopped: 3}",
        "tests/test_errors.py",
    ),
    Fault(
        "the recipe has the last word over the command line",
        "modeling_pure/recipe.py",
        "self.parse_args_into_dataclasses(arguments + options,",
        "self.parse_args_into_dataclasses(options + arguments,",
        "tests/training/test_recipes.py",
    ),
    Fault(
        "a command reads everything before its file cannot be written",
        "modeling_pure/options.py",
        "    if not Path(file).parent.is_dir():",
        "    if not Path(file).parent:",
        "tests/scripts/test_option_values.py",
    ),
]
