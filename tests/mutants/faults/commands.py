"""Faults in recipes, errors and commands."""

from tests.mutants.faults.fault import Fault

FAULTS = [
    Fault(
        "bad input ends with another exit code",
        "modeling_pure/errors.py",
        "{InputError: 2, RunStopped: 3}",
        "{InputError: 1, RunStopped: 3}",
        "tests/test_errors.py",
    ),
    Fault(
        "the recipe has the last word over the command line",
        "modeling_pure/recipe.py",
        "self.parse_known_args(arguments + options, exact)",
        "self.parse_known_args(options + arguments, exact)",
        "tests/training/test_recipes.py",
    ),
    Fault(
        "null leaves an option at its default",
        "modeling_pure/recipe.py",
        "setattr(exact, key, None)",
        "pass",
        "tests/scripts/test_option_values.py",
    ),
]
