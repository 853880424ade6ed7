"""The files of deploy/, and the training commands in them."""

import re
import shlex
import sys
from pathlib import Path

import yaml

from modeling_pure.data.arguments import DataArguments
from modeling_pure.grpo.arguments import GRPOScriptArguments, PureGRPOConfig
from modeling_pure.medqa.arguments import EvalArguments
from modeling_pure.recipe import RecipeParser
from modeling_pure.training.arguments import ModelArguments, PureTrainingArguments
from pure import MODULES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
TEXTS = [ROOT / "Dockerfile", ROOT / "docs/DEPLOYMENT_GUIDE.md", *sorted(DEPLOY.glob("*/*")), DEPLOY / "launch.py"]
SCRIPTS = {
    "train_pretrain.py": (ModelArguments, DataArguments, PureTrainingArguments),
    "train_grpo.py": (GRPOScriptArguments, PureGRPOConfig),
    "eval_medqa.py": (EvalArguments,),
}
AFTER_PURE = {name: SCRIPTS[f"{module}.py"] for name, module in MODULES.items() if f"{module}.py" in SCRIPTS}


def documents(path: Path) -> list[dict]:
    """The YAML documents of a manifest."""
    return list(yaml.safe_load_all(path.read_text()))


def commands_in(text: str) -> list[list[str]]:
    """The `SCRIPT --option value ...` and `pure COMMAND --option value ...` of a text, also over several lines."""
    lines = re.sub(r"\\\n[# ]*", "", text).splitlines()
    program = rf"(?:{'|'.join(map(re.escape, SCRIPTS))}|(?<=pure )(?:{'|'.join(AFTER_PURE)}))"
    found = [re.search(rf"(?:^|\s)({program} (--[^|&`)]*))", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


def accepted(command: list[str], monkeypatch) -> tuple:
    """The script's own dataclasses, filled from a command; fails where the script would refuse it."""
    script, *options = command
    monkeypatch.chdir(ROOT)
    return RecipeParser((SCRIPTS | AFTER_PURE)[script], "").parse_recipe(options)
