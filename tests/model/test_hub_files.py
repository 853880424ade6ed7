"""The files in every checkpoint are self-contained, and importing the package is cheap."""

import ast
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_pure
from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.configuration_pure import HUB_FILES

PACKAGE = Path(modeling_pure.__file__).parent
ALLOWED = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)


def parse(name: str) -> ast.Module:
    return ast.parse((PACKAGE / name).read_text())


@pytest.mark.parametrize("name", HUB_FILES)
def test_hub_files_import_only_what_every_user_has(name):
    siblings = {Path(file).stem for file in HUB_FILES}
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert node.module in siblings
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] in ALLOWED
            assert node.module != "__future__", "postponed annotations turn config_class into a string"


@pytest.mark.parametrize("name", ["configuration_pure.py", "modeling_pure.py"])
def test_transformers_finds_every_file_from_each_entry_point(name):
    """It finds imports by text, and saves a configuration that was loaded alone with the model's code."""
    assert {Path(file).name for file in get_relative_import_files(PACKAGE / name)} == set(HUB_FILES)


def test_a_push_uploads_weights_configuration_and_code(model, monkeypatch):
    pushed = []

    def create_commit(self, repo_id, operations, **kwargs):
        pushed.extend(operation.path_in_repo for operation in operations)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    model.push_to_hub("user/pure")
    assert {"model.safetensors", "config.json", "generation_config.json", *HUB_FILES} <= set(pushed)
    assert not [name for name in pushed if name.endswith((".bin", ".pt", ".pkl"))]


def test_a_configuration_of_another_module_makes_a_model(ids):
    """From a local folder, configuration and model come from two modules, so there are two classes PureConfig."""
    spec = spec_from_file_location("other_configuration", PACKAGE / "configuration_pure.py")
    spec.loader.exec_module(other := module_from_spec(spec))
    config = other.PureConfig.from_preset("tiny")
    assert not isinstance(config, PureConfig)
    torch.manual_seed(0)
    model = PureForCausalLM(config)
    torch.manual_seed(0)
    assert torch.equal(model(ids).logits, PureForCausalLM(PureConfig.from_preset("tiny"))(ids).logits)


def test_attention_has_the_form_vllm_reads():
    """The Transformers backend of vLLM finds the attention call by its syntax."""
    calls = [node for node in ast.walk(parse("modeling_pure.py")) if isinstance(node, ast.Call)]
    lookups = [call for call in calls if ast.unparse(call.func) == "ALL_ATTENTION_FUNCTIONS.get_interface"]
    assert len(lookups) == 1
    attend = [call for call in calls if ast.unparse(call.func) == "attend"]
    assert len(attend) == 1
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in attend[0].keywords}
    assert keywords == {"scaling": "self.scaling", None: "kwargs"}


def test_importing_the_package_loads_no_training_or_plotting_library():
    heavy = {"trl", "datasets", "matplotlib", "peft", "evaluate", "pandas"}
    # Transformers itself imports others, such as scipy.
    program = (
        "import sys, torch, transformers; from transformers import AutoModelForCausalLM, GenerationMixin; "
        "before = set(sys.modules); import modeling_pure; print(*(set(sys.modules) - before))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = result.stdout.split()
    assert "modeling_pure.modeling_pure" in loaded
    assert heavy & {name.split(".")[0] for name in loaded} == set()
    assert {name for name in loaded if name.startswith("modeling_pure.")} == {
        "modeling_pure.configuration_pure",
        "modeling_pure.attention_pure",
        "modeling_pure.loss_pure",
        "modeling_pure.modeling_pure",
    }
