"""Convert a Pure checkpoint to a Llama, or such a Llama to Pure: same weights, equal logits. Research use only.

    pure export --to llama CHECKPOINT OUT
    pure export --to pure LLAMA_FOLDER OUT

Pure is a Llama whose norm weights are all one, or with `qk_norm` a Qwen3 (`--to qwen3`). docs/SERVING.md shows how
other programs load OUT, which appears only after both models have been loaded and compared.
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
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # by name in safetensors
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
# Options of Llama and Qwen3 that Pure lacks; Pure's configuration checks shapes, tied embeddings and RoPE.
OTHERS_ALONE = {"attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "use_sliding_window": False}
NOT_CARRIED = {
    *("architectures", "auto_map", "dtype", "model_type", "transformers_version", "qk_norm"),
    *("pretraining_tp", "layer_types", "max_window_layers", "sliding_window"),
}
LAYOUT = """The layout is that of `{}`, with norm weights of one. The model was exported from a Pure checkpoint; in
fp32 the logits of both are equal to the last bit."""
ROUNDED = "The export rounded the weights from {} to {}; the evaluations below were made before it."


def main() -> None:
    """Check the arguments, write the other layout to a temporary folder, compare, and rename."""
    args = parse_arguments(sys.argv[1:])
    out = check_out(args.out)
    folder = find_folder(args.checkpoint, args.revision)
    config = read_config(folder, args.to)
    stored = stored_dtype(folder)
    dtype = args.dtype or stored
    is_rounded = torch.promote_types(getattr(torch, stored), getattr(torch, dtype)) != getattr(torch, dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A subfolder, because only its owner may read the temporary folder itself.
    with TemporaryDirectory(prefix=f"{out.name}.unfinished-", dir=out.parent) as temporary:
        unfinished = Path(temporary) / out.name
        source = load(folder, config.model_type, dtype)
        write_model(source, convert_config(config, args.to), unfinished, args.to)
        expected, suppressed = logits(source), source.generation_config.suppress_tokens
        del source  # to hold only one model in memory
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
    parser.add_argument("--dtype", choices=list(DTYPES.values()), help="of the weights; by default as stored")
    parser.add_argument("--revision", help="branch, tag or commit, if CHECKPOINT is a Hub id")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of the model")
    parser.add_argument("out", metavar="OUT", help="new or empty folder to write")
    return parser.parse_args(arguments)


def check_out(name: str) -> Path:
    """The folder to write; raises `InputError` unless it is new or empty."""
    check_output_folder("OUT", name)
    out = Path(os.path.abspath(name))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"OUT: '{name}' exists and is not an empty folder; empty it or use another name")
    return out


def find_folder(name: str, revision: str | None) -> Path:
    """The folder of a checkpoint; a Hub id is downloaded to the cache, without code.

    Raises:
        InputError: the model does not exist, or its weights are damaged or not safetensors.
    """
    if not (folder := Path(name)).exists() and not name.startswith((".", "/", "~")) and name.count("/") < 2:
        patterns = HUB_PATTERNS + TOKENIZER_FILES
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise InputError(f"CHECKPOINT: no such folder or Hub model '{name}': {first_line(error)}") from error
    elif revision:
        raise InputError(f"--revision: only for Hub ids, but '{name}' is a folder")
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
        raise InputError("CHECKPOINT: is quantised (quantization_config); export the original checkpoint")
    try:
        config: PreTrainedConfig = MODELS[kind].config_class.from_pretrained(folder)
    except (StrictDataclassError, ValueError) as error:
        raise InputError(f"CHECKPOINT: config.json: {last_line(error)}") from error
    if to == "pure":
        convert_config(config, "pure")
    elif to != OTHERS[config.qk_norm]:
        raise InputError(f"--to: {to} is for qk_norm {not config.qk_norm}; use {OTHERS[config.qk_norm]}")
    return config


def convert_config(config: PreTrainedConfig, to: str) -> PreTrainedConfig:
    """The configuration in another layout; it keeps fields that the layout lacks, so that the export can be reversed.

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
    """The message of a transformers validator, which follows the validator's name."""
    return str(error).strip().split("\n")[-1].strip()


def stored_dtype(folder: Path) -> str:
    """The dtype of the weights; raises `InputError` if they are mixed or not supported."""
    dtypes = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "pt") as weights:
            dtypes |= {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118  not a dict
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        expected, found = ", ".join(DTYPES.values()), ", ".join(sorted(dtypes)) or "none"
        raise InputError(f"CHECKPOINT: weights of dtype {found}; expected one of {expected}")
    return DTYPES[dtypes.pop()]


def load(folder: Path, kind: str, dtype: str) -> PreTrainedModel:
    """Load a model; raises `InputError` for missing, unexpected or misshapen weights."""
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
            raise InputError(f"CHECKPOINT: {name} is not all ones; Pure has no norm weights")
    ones = {k: torch.ones(v.shape, dtype=source.dtype) for k, v in target.state_dict().items() if "norm" in k}
    target.load_state_dict(state | ones, assign=True)  # strict: all other weights come from the source
    target.generation_config = source.generation_config
    try:
        target.save_pretrained(folder)
        follow_umask(folder.glob("*.safetensors"))
    except SafetensorError as error:
        raise RunStopped(f"OUT: cannot write: {first_line(error)}; nothing was left behind") from error


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of two sequences in fp32; converts the model to fp32.

    The second sequence has positions beyond the context, where RoPE may use other frequencies. The weights are copied,
    because their alignment in the file depends on its header, and matrix products may round differently by alignment.
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
    """Load the written model and require the source's logits to the last bit; returns facts for the terminal.

    Args:
        expected, suppressed: logits of the source, and the tokens that it never samples.

    Raises:
        InputError: the source's logits are not finite.
        RunStopped: the models differ.
    """
    if not expected.isfinite().all():
        raise InputError("CHECKPOINT: its logits are not finite")
    written = load(folder, to, "float32")
    found = logits(written)
    if not torch.equal(expected, found):
        worst = (expected - found).abs().max().item()
        raise RunStopped(f"OUT: its logits differ from CHECKPOINT's by up to {worst:.3g}; nothing was written")
    if not set(suppressed or []) <= set(written.generation_config.suppress_tokens or []):
        raise RunStopped("OUT: it does not suppress the same tokens as CHECKPOINT; nothing was written")
    ones = sum(weight.numel() for name, weight in written.state_dict().items() if "norm" in name)
    with_ones = f", {ones:,} of them norm weights of one" if ones else ""
    tokens = found[..., 0].numel()
    return {
        "parameters": f"{written.num_parameters():,}{with_ones}",
        "verified": f"reloaded: {tokens} tokens, all {found.numel():,} logits equal to the last bit (fp32)",
    }


def copy_tokenizer(source: Path, folder: Path) -> str:
    """Copy the tokenizer's files and check that the copy gives the same ids; returns a description."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not names:
        return "none: CHECKPOINT has none"
    for name in names:
        shutil.copyfile(source / name, folder / name)
    ours, theirs = (AutoTokenizer.from_pretrained(one) for one in (source, folder))
    if ours(DISCLAIMER).input_ids != theirs(DISCLAIMER).input_ids:
        raise RunStopped("OUT: its tokenizer gives other ids than CHECKPOINT's; nothing was written")
    return f"{len(ours):,} tokens, same ids for a sentence"


def write_card(source: Path, folder: Path, config: PreTrainedConfig, to: str, rounded: str) -> None:
    """Write the checkpoint's card, or a new one, with the architecture and loading of the other layout.

    Args:
        rounded: a sentence on the dtypes; empty if the weights were not rounded.
    """
    text = read_text(source / CARD_FILE)
    if not (card_blocks(text, "training") or card_blocks(text, "evaluation")):
        write_model_card(str(folder), "Pure", convert_config(config, "pure") if to == "pure" else config, {}, [])
        text = read_text(folder / CARD_FILE)
        text = replace_section(text, "Training", "The checkpoint has no record of its training.")
    shape = two_columns(architecture(convert_config(config, to)))
    layout = "" if to == "pure" else LAYOUT.format(MODELS[to].__name__)
    text = replace_section(text, "Architecture", "\n\n".join(filter(None, [shape, layout, rounded])))
    loading = LOADING.format(option=", trust_remote_code=True") + TRUST if to == "pure" else LOADING.format(option="")
    text = replace_section(text, "Loading", loading)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    if (source / "curves.png").is_file():
        shutil.copyfile(source / "curves.png", folder / "curves.png")


def replace_section(text: str, name: str, body: str) -> str:
    """Replace the text below the heading `name` of a card."""
    return re.sub(rf"^## {name}\n.*?(?=^## |\Z)", lambda _: f"## {name}\n\n{body}\n\n", text, flags=re.M | re.S)
