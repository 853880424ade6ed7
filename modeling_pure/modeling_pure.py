"""The Pure decoder: a Llama-shaped transformer without norm weights or biases.

Bit-equal to `LlamaForCausalLM` with norm weights of one. Pushed to the Hub as remote code, so it imports only torch,
transformers and its sibling files. Annotations must not be postponed (`from __future__`), because transformers reads
the class of `config: PureConfig`.
"""

import math
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_pure import CACHE, choose_mask, eager_attention_forward, expand_float32_heads
from .configuration_pure import PureConfig
from .loss_pure import LOSS_KEYWORDS, PureTokenLoss, compute_dtype, hidden_states_loss, is_plain_head, token_nats

# Trainer's label smoothing shifts the labels of the classes in this table; pipelines find text generators in it.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["pure"] = "PureForCausalLM"


class PureRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019), without a learned scale."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden) to the same shape and dtype; the kernel computes the mean in float32."""
        if torch.onnx.is_in_onnx_export():  # the TorchScript exporter lacks rms_norm
            states = hidden_states.float()
            states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self.eps)
            return states.to(hidden_states.dtype)
        # From torch 2.12 on, CUDA autocast runs rms_norm in float32 and would return float32.
        with maybe_autocast(hidden_states.device.type, enabled=False):
            return F.rms_norm(hidden_states, (self.hidden_size,), eps=self.eps)


class PureRotaryEmbedding(nn.Module):
    """Cosines and sines of rotary position embedding (Su et al. 2021), perhaps scaled for longer sequences."""

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: PureConfig) -> None:
        super().__init__()  # `dynamic_rope_update` relies on the names of the attributes
        self.config = config
        self.rope_type: str = (config.rope_parameters or {})["rope_type"]
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        frequencies, self.attention_scaling = self.inverse_frequencies()
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)

    def inverse_frequencies(self) -> tuple[torch.Tensor, float]:
        """theta^(-2i / head_dim), float32 (head_dim / 2), perhaps scaled, and the factor of cos and sin."""
        if self.rope_type != "default":
            return ROPE_INIT_FUNCTIONS[self.rope_type](self.config)
        size, theta = self.config.head_dim or 0, (self.config.rope_parameters or {})["rope_theta"]
        return 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float) / size)), 1.0

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        # `.to(bfloat16)` would round the frequencies, an error of 3.7 rad at position 2047: follow the device only.
        exact = dict(self.named_buffers(remove_duplicate=False))
        super()._apply(fn, recurse)
        for name, frequencies in self.named_buffers():
            if frequencies.dtype != torch.float32:
                setattr(self, name, exact[name].to(frequencies.device))
        return self

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (batch, length) to cos and sin (batch, length, head_dim), in the dtype of `hidden_states`."""
        angles = position_ids[..., None].float() * self.inv_freq.to(hidden_states.device)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate features i and i + head_dim/2 as a pair. States are (batch, heads, length, head_dim)."""
    first, second = states.chunk(2, dim=-1)
    return states * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def residual_init_std(config: PureConfig) -> float:
    """GPT-2's rule: 2 x layers terms add up in the residual stream, so each is divided by the root of their number."""
    return config.initializer_range / math.sqrt(2 * config.num_hidden_layers)


class PureAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023): groups of query heads share a key and a value head."""

    def __init__(self, config: PureConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True

        query_size = config.num_attention_heads * self.head_dim
        key_value_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.o_proj.init_std = residual_init_std(config)  # type: ignore[assignment]
        self.qk_norm = PureRMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, length, hidden) to the same shape, and attention weights if the implementation returns them."""
        input_shape = hidden_states.shape[:-1]
        split = (*input_shape, -1, self.head_dim)
        query = self.qk_norm(self.q_proj(hidden_states).view(split)).transpose(1, 2)
        key = self.qk_norm(self.k_proj(hidden_states).view(split)).transpose(1, 2)
        value = self.v_proj(hidden_states).view(split).transpose(1, 2)
        query, key = apply_rotary(query, *position_embeddings), apply_rotary(key, *position_embeddings)

        past_key_values = kwargs.pop(CACHE, past_key_values)  # type: ignore[misc]
        if past_key_values is not None:
            # Under autocast the key is float32 here, and the cache would convert the values, too.
            key, value = past_key_values.update(key.to(value.dtype), value, self.layer_idx, kwargs=kwargs)

        # vLLM parses these lines: one call to get_interface, `scaling` from self, all keywords passed on.
        implementation = self.config._attn_implementation
        if implementation == "sdpa":
            key, value = expand_float32_heads(query, key, value, attention_mask)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        mixed, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(mixed.reshape(*input_shape, -1).contiguous()), weights


class PureMLP(nn.Module):
    """The gated feed-forward SwiGLU (Shazeer 2020)."""

    def __init__(self, config: PureConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.down_proj.init_std = residual_init_std(config)  # type: ignore[assignment]
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class PureDecoderLayer(GradientCheckpointingLayer):
    """Attention, then MLP; each reads the normalised residual stream and adds to the stream itself."""

    def __init__(self, config: PureConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = PureAttention(config, layer_idx)
        self.mlp = PureMLP(config)
        self.input_layernorm = PureRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = PureRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """(batch, length, hidden) to the same shape; `kwargs` are those of `PureAttention.forward`."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class PurePreTrainedModel(PreTrainedModel):
    """Initialisation, and class attributes that transformers, TRL, PEFT, FSDP and vLLM read."""

    config: PureConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PureDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": PureDecoderLayer, "attentions": PureAttention}

    def __init__(self, config: PureConfig) -> None:
        config.standardize_rope_params()
        config.validate()  # fields may have changed since its construction
        super().__init__(config)

    def _init_weights(self, module: nn.Module) -> None:
        # For remote code, transformers skips modules without direct parameters (PureAttention, PureMLP), so special
        # scales are attributes of the leaves. `init` does not touch loaded weights.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, mean=0.0, std=getattr(module, "init_std", self.config.initializer_range))
        elif isinstance(module, PureRotaryEmbedding):
            for frequencies in (module.inv_freq, module.original_inv_freq):
                init.copy_(frequencies, module.inverse_frequencies()[0])

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As in transformers; all `new_num_tokens` become real tokens, and padding to a multiple adds spare rows.

        Raises:
            ValueError: a special token of the configuration is outside the new vocabulary.
        """
        real = self.config.real_tokens if new_num_tokens is None else new_num_tokens
        self.config.check_special_tokens(real)
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.num_real_tokens = real if real < self.config.vocab_size else None
        return embeddings

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: loading remote code calls this, and `PureConfig.save_pretrained` saves the code."""


class PureModel(PurePreTrainedModel):
    """The decoder without a head: token ids to hidden states."""

    def __init__(self, config: PureConfig) -> None:
        super().__init__(config)
        # No padding_idx: if pad = eos, as usual elsewhere, it would zero and freeze the end-of-text embedding.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([PureDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = PureRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = PureRotaryEmbedding(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[misc]  # TransformersKwargs has `position_ids` too
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Ids (batch, length), or embeddings (batch, length, hidden), to `last_hidden_state` (batch, length, hidden).

        `position_ids` that restart inside a sequence mark packed documents, which then do not attend to each other.
        This needs `attention_mask=None`: with any mask the sequence is one document. Training never creates a cache.
        """
        past_key_values = kwargs.pop(CACHE, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        # Under autocast the residual stream is in autocast's dtype, which halves the memory for the backward pass.
        # Cosines and sines stay in the dtype of the weights, so that rotary embedding is exact.
        hidden_states = inputs_embeds.to(compute_dtype(inputs_embeds))

        # Before defaults are set: a cache created here would hide packed documents.
        given = (attention_mask, position_ids, past_key_values)
        causal_mask, boundaries = choose_mask(self.config, inputs_embeds, *given, "cu_seq_lens_q" in kwargs)
        kwargs |= boundaries
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache(config=self.config)

        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)
        for layer in self.layers[: self.config.num_hidden_layers]:  # fewer while `generate` exits early
            # Reentrant checkpointing follows gradients through positional arguments only.
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_ids=position_ids,
                position_embeddings=position_embeddings,
                **{CACHE: past_key_values},  # checkpointing removes the cache by name
                **kwargs,
            )
        return BaseModelOutputWithPast(self.norm(hidden_states), past_key_values)


class PureForCausalLM(PurePreTrainedModel, GenerationMixin):
    """The decoder with its untied next-token head."""

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]
    _followed: list[int] | None

    def __init__(self, config: PureConfig) -> None:
        super().__init__(config)
        self.model = PureModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.init_std = config.head_initializer_range
        self.token_loss = PureTokenLoss()
        self.post_init()

    @property
    def generation_config(self) -> GenerationConfig:
        """As in transformers; `suppress_tokens` follows the vocabulary until it is set explicitly."""
        if self._generation_config.suppress_tokens == self._followed:
            self._followed = self._generation_config.suppress_tokens = self.config.suppressed_tokens or None
        return self._generation_config

    @generation_config.setter
    def generation_config(self, generation_config: GenerationConfig) -> None:
        if generation_config is not self.__dict__.get("_generation_config"):
            self._generation_config, self._followed = generation_config, self.config.suppressed_tokens or None
            # Saved suppress_tokens may belong to another vocabulary.
            if generation_config.suppress_tokens is None or self.config.is_spare(generation_config.suppress_tokens):
                generation_config.suppress_tokens = self._followed

    def _get_logits_processor(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        # `generate` completes the caller's GenerationConfig from the model's; `generate_batch` does not.
        if generation_config.suppress_tokens is None:
            generation_config = copy(generation_config)
            generation_config.suppress_tokens = self.generation_config.suppress_tokens
        return super()._get_logits_processor(generation_config, *args, **kwargs)  # type: ignore[misc]

    @can_return_tuple
    def forward(  # type: ignore[misc]  # TransformersKwargs has `position_ids` too
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        reduction: str = "mean",
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Ids (batch, length) to logits (batch, length, vocab); with labels (batch, length) also the mean loss.

        Labels are shifted here; -100 is ignored. `logits_to_keep` is the number of last positions (0 = all) or a 1D
        tensor of positions. With labels, a cache is returned only with `use_cache=True`.

        `skip_logits=True` (Liger's name) gives the same loss without logits; a plain head computes them in chunks.
        `reduction="none"` returns nats per token (batch, length), 0 without a label, without logits or gradients.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f'reduction is "mean" or "none", not {reduction!r}.')
        if labels is None and (skip_logits or reduction == "none"):
            raise ValueError('skip_logits and reduction="none" need labels.')
        if use_cache is None and labels is not None:
            use_cache = False  # a loss needs no cache, and compiled layers would guard on it
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=kwargs.pop(CACHE, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        states = out.last_hidden_state[:, kept, :]
        if labels is None:
            loss, logits = None, self.lm_head(states)
        elif reduction == "none":
            loss, logits = token_nats(self.lm_head, states, labels, **kwargs), None
        else:
            loss, logits = self._mean_loss(states, labels, bool(skip_logits), **kwargs)
        return CausalLMOutputWithPast(loss, logits, getattr(out, CACHE), out.hidden_states, out.attentions)

    def _mean_loss(
        self, states: torch.Tensor, labels: torch.Tensor, skip_logits: bool, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss, and the logits unless skipped, which a plain head with the usual loss then never materialises."""
        ours = self.loss_function is ForCausalLMLoss and kwargs.keys() <= LOSS_KEYWORDS
        if skip_logits and ours and is_plain_head(self.lm_head, states):
            return hidden_states_loss(states, labels, self.lm_head.weight, self.token_loss, **kwargs), None
        logits = self.lm_head(states)
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return loss, None if skip_logits else logits


__all__ = ["PureForCausalLM", "PureModel", "PurePreTrainedModel"]
