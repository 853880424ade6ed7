"""Configuration of the Pure decoder. Pushed to the Hub, so it imports transformers and huggingface_hub only."""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

HUB_FILES = ("configuration_pure.py", "loss_pure.py", "modeling_pure.py")

AUTO_MAP = {
    "AutoConfig": "configuration_pure.PureConfig",
    "AutoModel": "modeling_pure.PureModel",
    "AutoModelForCausalLM": "modeling_pure.PureForCausalLM",
}

# Shapes are chosen so that the untied embeddings (2 x vocab x hidden) and the layers add up to the size on the label.
PRESETS: dict[str, dict[str, Any]] = {
    # 1,261,568 parameters, its own small vocabulary: tests and the offline demo
    "tiny": {
        "vocab_size": 2048,
        "num_real_tokens": None,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    },
    # 29,982,720 parameters
    "small": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
    },
    # 124,600,320 parameters, the size of GPT-2
    "medium": {
        "hidden_size": 640,
        "intermediate_size": 1728,
        "num_hidden_layers": 14,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
    },
    # 401,227,776 parameters: the defaults of PureConfig
    "medium-large": {},
}


def copy_hub_files(source: Path, destination: str | os.PathLike[str]) -> None:
    """Put the files that `trust_remote_code` needs into the checkpoint folder `destination`.

    Only those that stand in `source` are copied: transformers gives a remote configuration a module folder of its own,
    without the modeling file, and there the model does the copying.
    """
    destination = Path(destination)
    destination.mkdir(parents=True, exist_ok=True)
    for name in HUB_FILES:
        file, target = source / name, destination / name
        if file.exists() and file.resolve() != target.resolve():
            shutil.copyfile(file, target)


@strict
class PureConfig(PreTrainedConfig):
    """Shape of a Pure decoder; the defaults are `medium-large`, 401,227,776 parameters.

    Args:
        vocab_size: rows of the embedding and of the head, padded for the hardware (50,304 = 393 x 128).
        num_real_tokens: how many of those rows the tokenizer can produce; the rest are never sampled. 50,258 is
            GPT-2's 50,257 plus our pad token. `None` means every row is real.
        head_dim: size of one attention head, `hidden_size / num_attention_heads` if not given.
        initializer_range: standard deviation of the weights at the start. The two projections that write into the
            residual stream get it divided by sqrt(2 x layers), as GPT-2 does.
        head_initializer_range: the same for `lm_head`. At 0.02 the first loss is 11.05, because the logits already
            vary; at 0.001 it is ln(50304) = 10.83.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}`; no other type is implemented.
        answer_formats: formats of MedQA answers that the model was taught (`letter`, `text`, `reasoned`).
        pad_token_id: a token of its own. Were it the end-of-text token, masking padding would mask real ends too.
    """

    model_type = "pure"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 50304
    num_real_tokens: int | None = 50258
    hidden_size: int = 1152
    intermediate_size: int = 3168
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rope_parameters: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    head_initializer_range: float = 0.001
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = 50257
    answer_formats: list[str] | None = None
    auto_map: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        # All three entries, always, and without the "repo--" prefix of a download: vLLM needs AutoModel, which
        # `register_for_auto_class` does not write, and the code is saved next to the weights.
        self.auto_map = {**(self.auto_map or {}), **AUTO_MAP}
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse shapes that cannot be built or would be wrong without saying so. Called by `@strict`."""
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        heads, kv_heads, head_dim = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        if head_dim is None or heads * head_dim != self.hidden_size:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be num_attention_heads ({heads}) x head_dim ({head_dim})."
            )
        if head_dim % 2:
            raise ValueError(f"head_dim ({head_dim}) must be even: rotary embedding turns pairs of features.")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads}).")
        if self.tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings=True is not supported: head and embedding start at different scales."
            )
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        if rope_type != "default":
            raise ValueError(f"rope_type must be 'default', got {rope_type!r}.")
        self._validate_ids()

    def _validate_ids(self) -> None:
        real = self.vocab_size if self.num_real_tokens is None else self.num_real_tokens
        if not 0 < real <= self.vocab_size:
            raise ValueError(f"num_real_tokens ({real}) must be between 1 and vocab_size ({self.vocab_size}).")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and not 0 <= token < real:
                    raise ValueError(
                        f"{name} ({token}) is not among the {real} real tokens. With another tokenizer pass "
                        "vocab_size, num_real_tokens, bos_token_id, eos_token_id and pad_token_id together."
                    )

    @property
    def suppressed_tokens(self) -> list[int]:
        """Ids no sampler may emit: padding, and the spare rows no tokenizer can decode (they become '')."""
        real = self.vocab_size if self.num_real_tokens is None else self.num_real_tokens
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        suppressed = {self.pad_token_id, *range(real, self.vocab_size)}.difference(ends)
        return sorted(token for token in suppressed if token is not None)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PureConfig":
        """The shape called `name` in `PRESETS`, with any field overridden."""
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}. Known presets: {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **overrides})

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save config.json together with the code that reads it, so that every checkpoint loads without this package.

        `register_for_auto_class` would do this too, but FSDP2 renames the model's class, after which transformers
        saves torch's own files instead of ours and points `auto_map` at them.
        """
        self.auto_map = {**(self.auto_map or {}), **AUTO_MAP}
        copy_hub_files(Path(__file__).parent, save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


__all__ = ["PureConfig"]
