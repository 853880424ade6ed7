"""Every checkpoint loads: with the package, without it, after FSDP2, and after being saved by remote code again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from modeling_pure import PureConfig, PureForCausalLM, PureModel
from modeling_pure.configuration_pure import AUTO_MAP, HUB_FILES

# Runs without `modeling_pure`, with the checkpoint folders only.
READER = """
import json, sys
from pathlib import Path

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_pure":
            raise ModuleNotFoundError("the package is not installed here", name=name)

sys.meta_path.insert(0, NoPackage())
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

work = Path(sys.argv[1])
ids = torch.load(work / "ids.pt")
report = {}

try:
    AutoModelForCausalLM.from_pretrained(work / "plain", trust_remote_code=False)
    report["refused"] = "no"
except ValueError as error:
    report["refused"] = str(error)

def read(folder):
    with torch.no_grad():
        lm = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        base = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        torch.save((lm(ids).logits, base(ids).last_hidden_state), folder / "outputs.pt")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    report[folder.name] = {
        "classes": [type(x).__name__ for x in (config, base, lm, fresh)],
        "modules": [type(x).__module__.split(".")[0] for x in (config, base, lm, fresh)],
        "head_std": fresh.lm_head.weight.std().item(),
        "auto_map": lm.config.auto_map,
        "suppressed": lm.generation_config.suppress_tokens,
    }
    return lm

for name in ("plain", "fsdp"):
    lm = read(work / name)
import torch.distributed.fsdp
# fully_shard renames the class; here the class is remote code, which is saved differently.
lm.__class__ = type("FSDPPureForCausalLM", (type(lm),), {"__module__": torch.distributed.fsdp.fully_shard.__module__})
lm.save_pretrained(work / "again")
read(work / "again")
lm.base_model.save_pretrained(work / "base_again")
AutoModel.from_pretrained(work / "base_again", trust_remote_code=True)
# A configuration without a loaded model, as in programs that merge weights.
AutoConfig.from_pretrained(work / "source", trust_remote_code=True).save_pretrained(work / "config_alone")
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
report["in_table"] = type(lm).__bases__[0].__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
(work / "report.json").write_text(json.dumps(report))
"""


def save_with_fsdp2(model: PureForCausalLM, folder: Path) -> str:
    """Shard over one process, save as Trainer does, and return the name FSDP2 gave the class."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    folder.mkdir()
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        model.save_pretrained(folder, state_dict=state)
    finally:
        dist.destroy_process_group()
    (folder / "rendezvous").unlink(missing_ok=True)
    return type(model).__name__


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Folders `plain`, `fsdp` and `again`, each loaded in a clean process into `outputs.pt` and `report.json`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    fields = {"num_real_tokens": 2040, "initializer_range": 0.1, "head_initializer_range": 0.1}
    model = PureForCausalLM(PureConfig.from_preset("tiny", **fields)).eval()
    ids = torch.randint(2, 2040, (2, 16))
    torch.save(ids, folder / "ids.pt")
    with torch.no_grad():
        torch.save((model(ids).logits, model.model(ids).last_hidden_state), folder / "expected.pt")
    model.save_pretrained(folder / "plain")
    model.save_pretrained(folder / "source")
    assert save_with_fsdp2(model, folder / "fsdp") == "FSDPPureForCausalLM"

    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(folder / "modules")
    command = [sys.executable, "-c", READER, str(folder)]
    result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("name", ["plain", "fsdp", "again"])
def test_clean_process_loads_all_three_classes_with_equal_outputs(work, name):
    report = json.loads((work / "report.json").read_text())[name]
    assert report["classes"] == ["PureConfig", "PureModel", "PureForCausalLM", "PureForCausalLM"]
    assert set(report["modules"]) == {"transformers_modules"}
    assert report["suppressed"] == [1, *range(2040, 2048)]
    # Remote code must also initialise every leaf with its own scale.
    assert report["head_std"] == pytest.approx(0.1, rel=0.02)
    for output, expected in zip(torch.load(work / name / "outputs.pt"), torch.load(work / "expected.pt"), strict=True):
        assert torch.equal(output, expected)


@pytest.mark.parametrize("name", ["plain", "fsdp", "again", "base_again", "config_alone"])
def test_checkpoint_holds_our_code_and_no_other(work, name):
    auto_map = json.loads((work / name / "config.json").read_text())["auto_map"]
    assert auto_map == AUTO_MAP
    assert {path.name for path in (work / name).glob("*.py")} == set(HUB_FILES)
    package = Path(sys.modules[PureConfig.__module__].__file__).parent
    for file in HUB_FILES:
        assert (work / name / file).read_bytes() == (package / file).read_bytes()


def test_remote_code_is_in_the_table_of_causal_models(work):
    assert json.loads((work / "report.json").read_text())["in_table"]


def test_remote_code_is_refused_without_trust(work):
    assert "trust_remote_code=True" in json.loads((work / "report.json").read_text())["refused"]


def test_with_the_package_the_auto_classes_need_no_trust(work):
    config = AutoConfig.from_pretrained(work / "plain")
    assert type(config) is PureConfig
    assert type(AutoModel.from_pretrained(work / "plain")) is PureModel
    model = AutoModelForCausalLM.from_pretrained(work / "plain").eval()
    assert type(model) is PureForCausalLM
    assert type(AutoModelForCausalLM.from_config(config)) is PureForCausalLM
    with torch.no_grad():
        assert torch.equal(model(torch.load(work / "ids.pt")).logits, torch.load(work / "expected.pt")[0])


def test_sharded_and_half_precision_checkpoints_keep_every_weight(model, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, info = PureForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.dtype == torch.bfloat16
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


def test_only_the_main_process_writes_the_code(model, tmp_path):
    model.save_pretrained(tmp_path / "other_rank", is_main_process=False)
    assert not list((tmp_path / "other_rank").glob("*.py"))
    model.save_pretrained(tmp_path / "main")
    assert {file.name for file in (tmp_path / "main").glob("*.py")} == set(HUB_FILES)
