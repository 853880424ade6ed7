"""Faults in recipes, errors and commands."""

from tests.mutants.faults.fault import Fault

FAULTS = [
    Fault(
        "the help page of `pure` imports torch",
        "pure.py",
        "import sys\n",
        "import sys\n\nimport torch\n",
        "tests/test_command_line.py -k page",
    ),
    Fault(
        "a command's usage and errors name the program that started it",
        "pure.py",
        'sys.argv = [f"pure {name}", *options]',
        "sys.argv = [sys.argv[0], *options]",
        "tests/test_command_line.py -k explains",
    ),
    Fault(
        "bad input ends with another exit code",
        "modeling_pure/errors.py",
        "{RankLost: 1, InputError: 2, RunStopped: 3}",
        "{RankLost: 1, InputError: 1, RunStopped: 3}",
        "tests/test_errors.py",
    ),
    Fault(
        "the recipe takes precedence over the command line",
        "modeling_pure/recipe.py",
        "self.parse_known_args(arguments + options, exact)",
        "self.parse_known_args(options + arguments, exact)",
        "tests/training/test_recipes.py",
    ),
    Fault(
        "a command reads everything before its file cannot be written",
        "modeling_pure/options.py",
        "    if not Path(file).parent.is_dir():",
        "    if not Path(file).parent:",
        "tests/scripts/test_option_values.py",
    ),
    Fault(
        "null leaves an option at its default",
        "modeling_pure/recipe.py",
        "setattr(exact, key, None)",
        "pass",
        "tests/scripts/test_option_values.py",
    ),
    Fault(
        "the doctor waits for a Hub that does not answer",
        "modeling_pure/doctor/context.py",
        "if remote and self.hub_fault:",
        "if not remote and self.hub_fault:",
        "tests/doctor/test_texts.py -k reported_once",
    ),
    Fault(
        "an error of a library ends the doctor",
        "modeling_pure/doctor/context.py",
        "except Exception as error:",
        "except KeyError as error:",
        "tests/doctor/test_model.py -k running_out_of_memory",
    ),
    Fault(
        "the demo's texts tell what its held-out questions ask",
        "modeling_pure/demo/world.py",
        "split.train.extend(combinations[dev:])",
        "split.train.extend(combinations[heldout:])",
        "tests/demo/test_world.py -k combination",
    ),
]
