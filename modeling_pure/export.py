"""Write a Pure checkpoint as a Llama, or such a Llama as Pure: the same weights, equal logits. Research use only.

    pure export --to llama CHECKPOINT OUT
    pure export --to pure LLAMA_FOLDER OUT

Pure is a Llama whose norm weights are all one, or with `qk_norm` a Qwen3 (`--to qwen3`). Other programs know these:
docs/SERVING.md says how each of them loads OUT. Both models are loaded and compared before OUT appears.
"""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen3ForCausalLM

from .atomic import follow_umask
from .configuration_pure import PureConfig
from .console import DISCLAIMER, print_block
from .errors import InputError, RunStopped, first_line
from .loading import check_model, load_pretrained
from .model_card import CARD_FILE, LOADING, TRUST, architecture, card_blocks, read_text, two_columns, write_model_card
from .modeling_pure import PureForCausalLM
from .options import CommandLine, check_output_folder

MODELS: dict[str, Any] = {"pure": PureForCausalLM, "llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM}
OTHERS = {False: "llama", True: "qwen3"}  # the layout by `qk_norm`
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # by their names in safetensors
TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
]
HUB_PATTERNS = ["config.json", "generation_config.json", "model*.safetensors*", CARD_FILE, "curves.png"]
# What a Llama or Qwen3 can be and Pure cannot; Pure's configuration checks shapes, tied embeddings and RoPE.
OTHERS_ALONE = {"attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "use_sliding_window": False}
NOT_CARRIED = {
    *("architectures", "auto_map", "dtype", "model_type", "transformers_version", "qk_norm"),
    *("pretraining_tp", "layer_types", "max_window_layers", "sliding_window"),
}
LAYOUT = """The layout is that of `{}`, with norm weights of one. It was exported from a Pure checkpoint,
and in fp32 every logit of the two is equal to the last bit."""
ROUNDED = "The weights were rounded from {} to {} in the export; the evaluations below were made before it."


def main() -> None:
    """Check the arguments, write the other layout under a temporary name, compare, and rename."""
    args = parse_arguments(sys.argv[1:])
    out = check_out(args.out)
    folder = find_folder(args.checkpoint, args.revision)
    config = read_config(folder, args.to)
    stored = stored_dtype(folder)
    dtype = args.dtype or stored
    is_rounded = torch.promote_types(getattr(torch, stored), getattr(torch, dtype)) != getattr(torch, dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A folder inside the temporary one, which only its owner may read.
    with TemporaryDirectory(prefix=f"{out.name}.unfinished-", dir=out.parent) as temporary:
        unfinished = Path(temporary) / out.name
        source = load(folder, config.model_type, dtype)
        write_model(source, convert_config(config, args.to), unfinished, args.to)
        expected, suppressed = logits(source), source.generation_config.suppress_tokens
        del source  # so that one model is in memory, not two
        verified = compare(expected, suppressed, unfinished, args.to)
        verified["tokenizer"] = copy_tokenizer(folder, unfinished)
        write_card(folder, unfinished, config, args.to, ROUNDED.format(stored, dtype) if is_rounded else "")
        os.rename(unfinished, out)
    facts = {
        "from": args.checkpoint,
        "to": str(out),
        "layout": MODELS[args.to].__name__,
        "dtype": f"{stored} to {dtype}, rounded before the comparison" if is_rounded else dtype,
    }
    print_block("Exported", {**facts, **verified, "note": DISCLAIMER})


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandLine(__doc__)
    parser.add_argument("--to", choices=list(MODELS), required=True, help="the layout to write")
    parser.add_argument("--dtype", choices=list(DTYPES.values()), help="of the weights; by default as they are stored")
    parser.add_argument("--revision", help="branch, tag or commit, if CHECKPOINT is a Hub id")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of the model")
    parser.add_argument("out", metavar="OUT", help="folder to write: a new one, or an empty one")
    return parser.parse_args(arguments)


def check_out(name: str) -> Path:
    """The folder to write; raises `InputError` if something is there already."""
    check_output_folder("OUT", name)
    out = Path(os.path.abspath(name))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"OUT: '{name}' exists and is not an empty folder; give another name or empty it")
    return out


def find_folder(name: str, revision: str | None) -> Path:
    """The folder of a checkpoint; a Hub id is downloaded to the usual cache, without any code.

    Raises:
        InputError: there is no such model, or its weights are not safetensors, or are damaged.
    """
    if not (folder := Path(name)).exists() and not name.startswith((".", "/", "~")) and name.count("/") < 2:
        patterns = HUB_PATTERNS + TOKENIZER_FILES
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise InputError(f"CHECKPOINT: no folder, and not on the Hub, '{name}': {first_line(error)}") from error
    elif revision:
        raise InputError(f"--revision: is for Hub ids, and '{name}' is a folder")
    check_model("CHECKPOINT", str(folder))
    return folder


def read_config(folder: Path, to: str) -> PreTrainedConfig:
    """The configuration of a checkpoint; raises `InputError` unless it can be written in the layout `to`."""
    kinds = [*OTHERS.values()] if to == "pure" else ["pure"]
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"CHECKPOINT: config.json is damaged: {first_line(error)}") from error
    if (kind := facts.get("model_type")) not in kinds:
        raise InputError(f"CHECKPOINT: model_type is {kind!r}, expected {' or '.join(map(repr, kinds))} (see --to)")
    if facts.get("quantization_config"):
        raise InputError("CHECKPOINT: is quantised (quantization_config); export the checkpoint it was made from")
    try:
        config: PreTrainedConfig = MODELS[kind].config_class.from_pretrained(folder)
    except (StrictDataclassError, ValueError) as error:
        raise InputError(f"CHECKPOINT: config.json: {last_line(error)}") from error
    if to == "pure":
        convert_config(config, "pure")
    elif to != OTHERS[config.qk_norm]:
        raise InputError(f"--to: a checkpoint with qk_norm {config.qk_norm} is no {to}; use {OTHERS[config.qk_norm]}")
    return config


def convert_config(config: PreTrainedConfig, to: str) -> PreTrainedConfig:
    """The configuration in another layout. Fields that the layout lacks are kept, so that the export can be reversed.

    Raises:
        InputError: a Llama or Qwen3 that does not have Pure's shape.
    """
    fields = {name: value for name, value in config.to_dict().items() if name not in NOT_CARRIED}
    if to != "pure":
        converted: PreTrainedConfig = MODELS[to].config_class(**fields)
        return converted
    for name, value in OTHERS_ALONE.items():
        if fields.pop(name, value) != value:
            raise InputError(f"CHECKPOINT: {name} is {getattr(config, name)}; Pure has only {value}")
    fields["qk_norm"] = config.model_type == OTHERS[True]
    try:
        return PureConfig(**{"num_real_tokens": None, **fields})  # the default is GPT-2's
    except (StrictDataclassError, ValueError) as error:
        raise InputError(f"CHECKPOINT: does not have Pure's shape: {last_line(error)}") from error


def last_line(error: Exception) -> str:
    """The message of a validator of transformers, which stands below the validator's name."""
    return str(error).strip().split("\n")[-1].strip()


def stored_dtype(folder: Path) -> str:
    """The dtype of the weights; raises `InputError` if there are several, or one that Pure does not have."""
    dtypes = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "pt") as weights:
            dtypes |= {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118  no dictionary
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        expected, found = ", ".join(DTYPES.values()), ", ".join(sorted(dtypes)) or "none"
        raise InputError(f"CHECKPOINT: weights of dtype {found}; expected one of {expected}")
    return DTYPES[dtypes.pop()]


def load(folder: Path, kind: str, dtype: str) -> PreTrainedModel:
    """The model with every one of its weights; raises `InputError` if some are missing, unexpected or misshapen."""
    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    model, found = load_pretrained("CHECKPOINT", MODELS[kind], str(folder), False, **options)
    for what in ("missing_keys", "unexpected_keys"):
        if found[what]:
            raise InputError(f"CHECKPOINT: {what.replace('_', ' ')} in the weights: {', '.join(sorted(found[what]))}")
    loaded: PreTrainedModel = model.eval()
    return loaded


def write_model(source: PreTrainedModel, config: PreTrainedConfig, folder: Path, to: str) -> None:
    """Write weights, configuration and generation configuration; the weights are not copied in memory.

    Raises:
        InputError: the source has norm weights other than one.
        RunStopped: the disk is full.
    """
    with torch.device("meta"):
        target = MODELS[to](config)
    state = source.state_dict()
    for name in [name for name in state if "norm" in name]:
        if (state.pop(name) != 1).any():
            raise InputError(f"CHECKPOINT: {name} is not all ones; as Pure it would be another model")
    # Strict, so that every weight of the other layout is one of the source or a norm of ones.
    norms = {name: weight for name, weight in target.state_dict().items() if "norm" in name}
    ones = {name: torch.ones(weight.shape, dtype=source.dtype) for name, weight in norms.items()}
    target.load_state_dict(state | ones, assign=True)
    target.generation_config = source.generation_config
    try:
        target.save_pretrained(folder)
        follow_umask(folder.glob("*.safetensors"))
    except SafetensorError as error:
        raise RunStopped(f"OUT: cannot write: {first_line(error)}; nothing was left behind") from error


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of two sequences in fp32, the second at positions beyond the context; the model stays in fp32.

    Beyond the context, RoPE may use other frequencies. The weights move to memory of their own: where they lie in the
    file depends on its header, and a matrix product may round by the alignment of what it reads.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32, copy=True)
    real = getattr(model.config, "num_real_tokens", None) or model.config.vocab_size
    context = model.config.max_position_embeddings
    ids = torch.randint(real, (2, min(64, context)), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(ids.shape[1])
    sequences = zip(ids.split(1), (positions, positions + context), strict=True)
    return torch.cat([model(tokens, position_ids=places[None]).logits for tokens, places in sequences])


def compare(expected: torch.Tensor, suppressed: list[int] | None, folder: Path, to: str) -> dict[str, str]:
    """Load what was written, require the source's logits to the last bit, and return facts for the terminal.

    Args:
        expected, suppressed: logits of the source, and the tokens that it never samples.

    Raises:
        InputError: the source's logits are not finite.
        RunStopped: the two differ.
    """
    if not expected.isfinite().all():
        raise InputError("CHECKPOINT: its logits are not finite")
    written = load(folder, to, "float32")
    found = logits(written)
    if not torch.equal(expected, found):
        worst = (expected - found).abs().max().item()
        raise RunStopped(f"OUT: its logits are not those of CHECKPOINT (off by {worst:.3g}); nothing was written")
    if not set(suppressed or []) <= set(written.generation_config.suppress_tokens or []):
        raise RunStopped("OUT: it does not suppress the tokens that CHECKPOINT does; nothing was written")
    ones = sum(weight.numel() for name, weight in written.state_dict().items() if "norm" in name)
    with_ones = f", {ones:,} of them norm weights of one" if ones else ""
    tokens = found[..., 0].numel()
    return {
        "parameters": f"{written.num_parameters():,}{with_ones}",
        "verified": f"reloaded: {tokens} tokens, all {found.numel():,} logits equal to the last bit (fp32)",
    }


def copy_tokenizer(source: Path, folder: Path) -> str:
    """Copy the tokenizer as it is, and check that it gives the same ids from there; returns a line on it."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not names:
        return "none: CHECKPOINT has none"
    for name in names:
        shutil.copyfile(source / name, folder / name)
    ours, theirs = (AutoTokenizer.from_pretrained(one) for one in (source, folder))
    if ours(DISCLAIMER).input_ids != theirs(DISCLAIMER).input_ids:
        raise RunStopped("OUT: its tokenizer gives other ids than that of CHECKPOINT; nothing was written")
    return f"{len(ours):,} tokens, a sentence gives the same ids"


def write_card(source: Path, folder: Path, config: PreTrainedConfig, to: str, rounded: str) -> None:
    """Write the checkpoint's card with the shape and loading of the other layout, or a new one if it has none of ours.

    Args:
        rounded: a sentence on the dtypes; empty if the weights are as they were.
    """
    text = read_text(source / CARD_FILE)
    if not (card_blocks(text, "training") or card_blocks(text, "evaluation")):
        write_model_card(str(folder), "Pure", convert_config(config, "pure") if to == "pure" else config, {}, [])
        text = read_text(folder / CARD_FILE)
        text = replace_section(text, "Training", "The checkpoint came without a record of its training.")
    shape = two_columns(architecture(convert_config(config, to)))
    layout = "" if to == "pure" else LAYOUT.format(MODELS[to].__name__)
    text = replace_section(text, "Architecture", "\n\n".join(filter(None, [shape, layout, rounded])))
    loading = LOADING.format(option=", trust_remote_code=True") + TRUST if to == "pure" else LOADING.format(option="")
    text = replace_section(text, "Loading", loading)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    if (source / "curves.png").is_file():
        shutil.copyfile(source / "curves.png", folder / "curves.png")


def replace_section(text: str, name: str, body: str) -> str:
    """A card with another text below the heading `name`."""
    return re.sub(rf"^## {name}\n.*?(?=^## |\Z)", lambda _: f"## {name}\n\n{body}\n\n", text, flags=re.M | re.S)
