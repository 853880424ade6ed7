"""Stand-ins for the models and the data set of TRL's own tests, and the plugin that runs these with our trainer.

`build_hub` writes a Hub cache with tiny random models under the names that TRL's tests load. As a pytest plugin this
module serves their data set, and with `TRL_TRAINER=ours` puts our trainer, with TRL's defaults, in the place of TRL's.
"""

import codecs
import json
import os
from contextlib import redirect_stdout
from dataclasses import MISSING, field, fields, make_dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path

OWNER = "trl-internal-testing"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
# Words of each line of the Zen of Python that make a prompt, as TRL's data set has them.
CUTS = [4, 2, 3, 1, 4, 3, 1, 4, 3, 3, 2, 6, 3, 4, 2, 3, 4, 5, 2]
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CAUSAL = {  # the one that most tests load is ours
    "tiny-Qwen2ForCausalLM-2.5": ("pure", {"head_initializer_range": 0.05}),
    "tiny-Qwen3ForCausalLM": ("qwen3", {}),
    "tiny-Gemma2ForCausalLM": ("gemma2", {}),
    "tiny-Cohere2ForCausalLM": ("cohere2", {}),
    "tiny-Qwen3MoeForCausalLM": ("qwen3_moe", EXPERTS),
    "tiny-GptOssForCausalLM": ("gpt_oss", EXPERTS),
}
VOCABULARY = 16_384  # so many that a random model hardly ever ends a text, as one of TRL's tests expects
NARROW = {"hidden_size": 8, "head_dim": 2}
REMOTE = "tiny-RemoteForCausalLM"
REMOTE_CODE = """from transformers import Qwen2Config, Qwen2ForCausalLM


class RemoteConfig(Qwen2Config):
    model_type = "remote"


class RemoteForCausalLM(Qwen2ForCausalLM):
    config_class = RemoteConfig
"""
REWARD = {
    "tiny-Qwen2ForSequenceClassification-2.5": "qwen2",
    "tiny-Qwen3ForSequenceClassification": "qwen3",
    "tiny-LlamaForSequenceClassification-3.2": "llama",
}


def zen() -> list[str]:
    """The lines of the Zen of Python."""
    with redirect_stdout(StringIO()):
        text = codecs.decode(import_module("this").s, "rot13")
    return text.splitlines()[2:]


def build_hub(cache: Path) -> None:
    """Write a Hub cache with the models of `CAUSAL` and `REWARD`, each with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    import modeling_pure  # noqa: F401  # registers its classes

    small, large = make_tokenizer(320), make_tokenizer(VOCABULARY)
    torch.manual_seed(0)
    for name, (kind, more) in CAUSAL.items():
        tokenizer = small
        if kind == "pure":
            tokenizer, more = (
                large,
                {**more, "num_real_tokens": len(large), "bos_token_id": large.eos_token_id, **NARROW},
            )
        config = AutoConfig.for_model(kind, **{**SHAPE, **ids_of(tokenizer), **more})
        save(cache, name, AutoModelForCausalLM.from_config(config), tokenizer)
    for name, kind in REWARD.items():
        config = AutoConfig.for_model(kind, **SHAPE, **ids_of(small), num_labels=1)
        save(cache, name, AutoModelForSequenceClassification.from_config(config), small)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **SHAPE, **ids_of(small)))
    write_code(save(cache, REMOTE, model, small))


def make_tokenizer(size: int):
    """A byte-level tokenizer with this many tokens, most of them unused."""
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import TokenizersBackend

    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator(zen(), vocab_size=300, show_progress=False)
    given = json.loads(inner._tokenizer.to_str())
    vocabulary, special = given["model"]["vocab"], {size - 2: "<|pad|>", size - 1: "<|end|>"}
    vocabulary |= {special.get(i, f"<|{i}|>"): i for i in range(len(vocabulary), size)}
    backend = Tokenizer.from_str(json.dumps(given))
    tokenizer = TokenizersBackend(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def ids_of(tokenizer) -> dict:
    """What a configuration says of a tokenizer."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    return {**ids, "bos_token_id": None, "vocab_size": len(tokenizer)}


def save(cache: Path, name: str, model, tokenizer) -> Path:
    """Put a model into the Hub's cache; returns its folder."""
    repository, revision = cache / f"models--{OWNER}--{name}", "0" * 40
    snapshot = repository / "snapshots" / revision
    model.save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    return snapshot


def write_code(folder: Path) -> None:
    """Let a model's classes come with it."""
    (folder / "remote.py").write_text(REMOTE_CODE)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "remote.RemoteConfig", "AutoModelForCausalLM": "remote.RemoteForCausalLM"}
    config |= {"model_type": "remote", "architectures": ["RemoteForCausalLM"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))


def load_dataset(path: str, name: str, split: str | None = None, streaming: bool = False):
    """TRL's small data set of prompts; 17 rows to train on and 2 to test."""
    from datasets import Dataset, DatasetDict

    assert path == f"{OWNER}/zen"
    prompts = [" ".join(line.split()[:cut]) for line, cut in zip(zen(), CUTS, strict=True)]
    if name.startswith("conversational"):
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    splits = {"train": prompts[:17], "test": prompts[17:]}
    made = DatasetDict({key: Dataset.from_dict({"prompt": rows}) for key, rows in splits.items()})
    chosen = made if split is None else made[split]
    return chosen.to_iterable_dataset() if streaming else chosen


def with_trl_defaults():
    """`PureGRPOConfig` with TRL's default wherever TRL has the option; without the mask, which TRL has not."""
    from trl import GRPOConfig

    from modeling_pure.grpo.arguments import PureGRPOConfig

    theirs = []
    for given in fields(GRPOConfig):
        kind = (
            {"default": given.default} if given.default is not MISSING else {"default_factory": given.default_factory}
        )
        theirs.append((given.name, given.type, field(**kind)))
    theirs.append(("keep_sampling_mask", bool, field(default=False)))
    made = make_dataclass("PureGRPOConfigOfTRL", theirs, bases=(PureGRPOConfig,))
    made.__module__, globals()[made.__name__] = __name__, made  # Trainer pickles it
    return made


def missing_check(name: str):
    """`is_PACKAGE_available` of a package that TRL does not know: it is not."""
    if name.startswith("is_") and name.endswith("_available"):
        return lambda *args, **kwargs: False
    raise AttributeError(name)


def pytest_configure(config) -> None:
    """Serve the data set, and swap the trainer."""
    if "TRL_TRAINER" not in os.environ:
        return
    import datasets
    import trl

    import modeling_pure  # noqa: F401  # for both: the most used stand-in is a Pure model

    datasets.load_dataset = load_dataset
    # PEFT knows where adapters go in Qwen2, whose place a Pure model takes.
    import_module("peft.utils.constants").TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["pure"] = [
        "q_proj",
        "v_proj",
    ]
    # Tests of another release may ask for packages that this one no longer knows.
    import_module("trl.import_utils").__getattr__ = missing_check

    if os.environ["TRL_TRAINER"] == "ours":
        from modeling_pure.grpo.trainer import PureGRPOTrainer

        trl.GRPOTrainer, trl.GRPOConfig = PureGRPOTrainer, with_trl_defaults()
