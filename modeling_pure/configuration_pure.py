"""Configuration of the Pure decoder.

Pushed to the Hub as remote code, so it imports only torch, transformers and huggingface_hub.
"""

import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

if TYPE_CHECKING:
    # transformers finds the files of remote code by their imports; this one makes AutoConfig alone fetch all of them.
    from .modeling_pure import PureForCausalLM  # noqa: F401

HUB_FILES = ("attention_pure.py", "configuration_pure.py", "loss_pure.py", "modeling_pure.py")

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

AUTO_MAP = {
    "AutoConfig": "configuration_pure.PureConfig",
    "AutoModel": "modeling_pure.PureModel",
    "AutoModelForCausalLM": "modeling_pure.PureForCausalLM",
}

OTHER_ROPE_KEYS = ("type", "mscale", "mscale_all_dim", "truncate")  # not listed by early versions of transformers
MINIMA = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), 1),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1),
    **dict.fromkeys(("initializer_range", "head_initializer_range", "rms_norm_eps"), 0),
}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

# Shapes are chosen so that the untied embeddings (2 x vocab x hidden) and the layers add up to the nominal size.
PRESETS: dict[str, dict[str, Any]] = {
    # 1,261,568 parameters, with a small vocabulary: tests and the offline demo
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


class ForGPT2(int):
    """A default that is valid for GPT-2's vocabulary only; an explicitly given number is a plain `int`."""


@strict
class PureConfig(PreTrainedConfig):
    """Shape of a Pure decoder; the defaults are `medium-large`, 401,227,776 parameters.

    Args:
        vocab_size: rows of the embedding and of the head, padded for the hardware (50,304 = 393 x 128).
        num_real_tokens: number of rows that the tokenizer can produce; the rest are never sampled. 50,258 is GPT-2's
            50,257 plus our pad token. `None` means all rows, and is the default with any other `vocab_size`; default
            token ids outside such a vocabulary become `None`, too.
        head_dim: size of one attention head, `hidden_size / num_attention_heads` if not given.
        initializer_range: standard deviation of the initial weights. As in GPT-2, it is divided by sqrt(2 x layers)
            for the two projections that write into the residual stream.
        head_initializer_range: the same for `lm_head`. With 0.02 the logits vary and the first loss is 11.05;
            with 0.001 it is ln(50304) = 10.83.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}`, or any of transformers' types "linear",
            "dynamic", "yarn", "longrope" and "llama3" with its parameters, for sequences longer than trained.
        qk_norm: whether to divide the query and key of each head by their root mean square (Henry et al. 2020; Qwen3),
            without a learned scale.
        answer_formats: MedQA answer formats that the model was trained on (`letter`, `text`, `reasoned`).
        pad_token_id: not the end-of-text token, since masking padding would then also mask real ends.
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
    num_real_tokens: int | None = ForGPT2(50258)
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
    qk_norm: bool = False
    initializer_range: float = 0.02
    head_initializer_range: float = 0.001
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = ForGPT2(50256)
    eos_token_id: int | list[int] | None = ForGPT2(50256)
    pad_token_id: int | None = ForGPT2(50257)
    answer_formats: list[str] | None = None
    auto_map: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if isinstance(self.num_real_tokens, ForGPT2):
            self.num_real_tokens = int(self.num_real_tokens) if self.vocab_size == type(self).vocab_size else None
        for name in SPECIAL_TOKENS:
            if isinstance(token := getattr(self, name), ForGPT2):
                setattr(self, name, int(token) if token < self.real_tokens else None)
        # vLLM needs AutoModel, which `register_for_auto_class` does not write. Entries lack the "repo--" prefix of a
        # download, because the code is saved next to the weights.
        self.auto_map = {**(self.auto_map or {}), **AUTO_MAP}
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # A special token set after construction comes from a tokenizer that uses spare rows.
        if name in SPECIAL_TOKENS and "_name_or_path" in self.__dict__:
            highest = max((token for token in (value if isinstance(value, list) else [value]) if token), default=0)
            if self.real_tokens <= highest < self.vocab_size:
                self.num_real_tokens = highest + 1

    def validate_architecture(self) -> None:
        """Raise `ValueError` for shapes that cannot be built or would silently be wrong. Called by `@strict`."""
        for name, minimum in MINIMA.items():
            if not minimum <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} ({getattr(self, name)}) must be a number of at least {minimum}.")
        if not 0 < self.real_tokens <= self.vocab_size:
            raise ValueError(
                f"num_real_tokens ({self.real_tokens}) must be between 1 and vocab_size ({self.vocab_size})."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not among transformers' activations.")
        heads, kv_heads, head_dim = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        if head_dim is None or heads * head_dim != self.hidden_size:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be num_attention_heads ({heads}) x head_dim ({head_dim})."
            )
        if head_dim % 2:
            raise ValueError(f"head_dim ({head_dim}) must be even: rotary embedding rotates pairs of features.")
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads}).")
        if self.tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings=True is not supported: head and embedding are initialised differently."
            )
        self._validate_rope(self.rope_parameters or {})
        self.check_special_tokens(self.real_tokens)

    def _validate_rope(self, rope: dict[str, Any]) -> None:
        """Raise `ValueError` for parameters that transformers only warns about or ignores."""
        rope_type, theta, factor = rope.get("rope_type"), rope.get("rope_theta"), rope.get("factor")
        if rope_type not in ROPE_TYPES:
            raise ValueError(f"rope_parameters: rope_type must be one of {', '.join(ROPE_TYPES)}, got {rope_type!r}.")
        if unknown := set(rope) - {*OTHER_ROPE_KEYS, *RopeParameters.__annotations__}:
            raise ValueError(f"rope_parameters: unknown {', '.join(sorted(map(str, unknown)))}.")
        if not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
            raise ValueError(f"rope_parameters: rope_theta must be a positive number, got {theta!r}.")
        if rope.get("partial_rotary_factor") not in (None, 1) or rope.get("mrope_section"):
            raise ValueError("rope_parameters: all features are rotated (partial_rotary_factor 1.0).")
        if rope_type == "default" and factor is not None:
            raise ValueError("rope_parameters: rope_type 'default' takes no factor; set a type that scales.")
        if factor is not None and (not isinstance(factor, (int, float)) or not 1 <= factor < math.inf):
            raise ValueError(f"rope_parameters: factor must be a number of at least 1, got {factor!r}.")
        if rope_type != "default":
            self._validate_frequencies(rope_type)

    def _validate_frequencies(self, rope_type: str) -> None:
        """Compute the frequencies of short and long sequences, since transformers validates few parameters."""
        try:
            for length in (1, 2 * self.max_position_embeddings + 1):
                with torch.device("cpu"):  # the model may be under construction on the meta device
                    frequencies, scaling = ROPE_INIT_FUNCTIONS[rope_type](self, seq_len=length)
                if not ((frequencies > 0) & frequencies.isfinite()).all() or not 0 < scaling < math.inf:
                    raise ValueError("frequencies or attention_factor are not positive numbers")
                if self.head_dim != 2 * len(frequencies):
                    raise ValueError(f"there are {len(frequencies)} frequencies for a head_dim of {self.head_dim}")
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"rope_parameters: rope_type {rope_type!r} cannot be computed: {reason}.") from error

    def check_special_tokens(self, real: int) -> None:
        """Raise `ValueError` if a special token is not among the first `real` rows."""
        for name in SPECIAL_TOKENS:
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and not 0 <= token < real:
                    raise ValueError(
                        f"{name} ({token}) is not among the {real} real tokens. With another tokenizer pass "
                        "vocab_size, num_real_tokens, bos_token_id, eos_token_id and pad_token_id together."
                    )

    @property
    def real_tokens(self) -> int:
        """The number of tokens that the tokenizer can produce."""
        return self.vocab_size if self.num_real_tokens is None else self.num_real_tokens

    @property
    def end_tokens(self) -> list[int | None]:
        """The end-of-text tokens as a list."""
        return [*self.eos_token_id] if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def suppressed_tokens(self) -> list[int]:
        """Ids that are never sampled: padding, and the spare rows, which no tokenizer can decode."""
        suppressed = {self.pad_token_id, *range(self.real_tokens, self.vocab_size)}.difference(self.end_tokens)
        return sorted(token for token in suppressed if token is not None)

    def is_spare(self, tokens: list[int]) -> bool:
        """Whether ids equal `suppressed_tokens` for any `num_real_tokens`."""
        others = {self.pad_token_id, *self.end_tokens}
        rows = {*tokens}.difference(others)
        first = min(rows, default=self.vocab_size)
        return bool(tokens) and rows == {*range(first, self.vocab_size)}.difference(others)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but validates overrides like arguments; `from_pretrained` calls this.

        Overriding RoPE parameters keep the theta and length of the training unless they have their own.
        """
        if rope := kwargs.pop("rope_scaling", None):
            kwargs["rope_parameters"] = rope
        if "rope_theta" in kwargs:
            given = kwargs.get("rope_parameters") or config_dict.get("rope_parameters") or {}
            kwargs["rope_parameters"] = given | {"rope_theta": kwargs.pop("rope_theta")}
        if isinstance(rope := kwargs.get("rope_parameters"), dict):
            stored = config_dict.get("rope_parameters") or {}
            trained = {"rope_theta": stored.get("rope_theta", cls.default_theta)}
            if rope.get("rope_type", rope.get("type")) in ("yarn", "longrope", "llama3"):
                length = config_dict.get("max_position_embeddings", cls.max_position_embeddings)
                trained["original_max_position_embeddings"] = stored.get("original_max_position_embeddings", length)
            kwargs["rope_parameters"] = trained | rope
        overrides = {name: value for name, value in kwargs.items() if name in cls.__annotations__}
        loaded = super().from_dict({**config_dict, **overrides}, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).validate()
        return loaded

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PureConfig":
        """The preset `name` of `PRESETS`, with fields overridden."""
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}. Known presets: {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **overrides})

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save config.json with the code that reads it, so that every checkpoint loads without this package.

        `register_for_auto_class` would also do this, but FSDP2 renames the model's class, after which transformers
        saves torch's files instead of ours and `auto_map` refers to them.
        """
        self.auto_map = {**(self.auto_map or {}), **AUTO_MAP}
        os.makedirs(save_directory, exist_ok=True)
        for name in HUB_FILES:
            file, target = Path(__file__).with_name(name), Path(save_directory, name)
            if file.exists() and file.resolve() != target.resolve():
                shutil.copyfile(file, target)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


__all__ = ["PureConfig"]
