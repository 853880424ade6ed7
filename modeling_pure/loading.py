"""Load models by folder or Hub id; raise `InputError` for those that cannot be loaded."""

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
    """Raise `InputError` if a local `name_or_path` is not a folder with a model and readable weights."""
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
    """The command that merges an adapter into its base model and saves the result in a folder beside it."""
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
    """Load a model or tokenizer through an Auto class; raises `InputError` with the option `key` if that fails."""
    try:
        return kind.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"{key}: cannot load '{name}': {first_line(error)}") from error


def load_model(key: str, name: str, trust_remote_code: bool) -> PreTrainedModel:
    """Load a causal model in fp32: in bf16, two options tie in about 3 % of MedQA's questions."""
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    model: PreTrainedModel = load_pretrained(key, AutoModelForCausalLM, name, trust_remote_code, **options)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
