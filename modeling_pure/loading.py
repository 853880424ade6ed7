"""Loads models by name: a folder without one is refused first, and a library's error becomes one line."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from .errors import InputError, first_line

ADAPTER_FILE = "adapter_config.json"


def check_model(key: str, name_or_path: str) -> None:
    """Raise `InputError` if a local `name_or_path` is not a folder with a model whose weights files can be read."""
    folder = Path(name_or_path)
    looks_local = folder.exists() or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if not looks_local:
        return
    if (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").is_file():
        raise InputError(f"{key}: '{name_or_path}' is an adapter, not a model; merge it: {merge_command(folder)}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{key}: '{name_or_path}' is not a model folder (it has no config.json)")
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{key}: '{name_or_path}' has no weights (*.safetensors)")
    for file in weights:
        try:
            safe_open(file, "pt").keys()
        except SafetensorError as error:
            raise InputError(f"{key}: '{file}' is damaged: {first_line(error)}") from error


def merge_command(adapter: Path) -> str:
    """The command that merges an adapter into its base model, in a folder beside it."""
    try:
        base = json.loads((adapter / ADAPTER_FILE).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = "BASE"
    merged = f"{adapter}-merged"
    return (
        'python -c "import modeling_pure; from peft import PeftModel; from transformers import AutoModelForCausalLM, '
        f"AutoTokenizer; PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('{base}'), '{adapter}')"
        f".merge_and_unload().save_pretrained('{merged}'); "
        f"AutoTokenizer.from_pretrained('{adapter}').save_pretrained('{merged}')\""
    )


def load_pretrained(key: str, kind: Any, name: str, trust_remote_code: bool, **options: Any) -> Any:
    """What an Auto class loads from a model's folder or Hub id; `InputError` names the option `key` if it cannot."""
    try:
        return kind.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"{key}: cannot load '{name}': {first_line(error)}") from error


def load_model(key: str, name: str, trust_remote_code: bool) -> PreTrainedModel:
    """A causal model in fp32: in bf16 about 3 % of MedQA's questions tie, and ties go to the earlier letter."""
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    model: PreTrainedModel = load_pretrained(key, AutoModelForCausalLM, name, trust_remote_code, **options)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
