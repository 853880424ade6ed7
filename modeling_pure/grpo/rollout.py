"""Samples a group of completions for each prompt, with the keep-sampling mask and log-probability of every token.

Each prompt is computed once for its group, whose completions all read the same prompt keys and values (bifurcated
attention, Athiwaratkun et al. 2024). A completion's own keys and values are stored in buffers of fixed size, so that a
step can be captured as a CUDA graph and replayed. Finished completions leave once the batch can be halved.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from ..attention_pure import CACHE
from ..errors import first_line
from ..loss_pure import compute_dtype
from .log_probs import head_logits
from .sampling import SampledTokens, SamplingParams, TokenSampler

logger = logging.getLogger(__name__)

WINDOW = 64  # initial buffer size in tokens per completion; doubled when full
ATTENTION = "pure_rollout"
KeysAndValues = tuple[torch.Tensor, torch.Tensor]  # of one layer


@dataclass
class Rollout:
    """Sampled completions, in the order of the prompts.

    Attributes:
        completion_ids: each up to and including its end-of-text token, if it has one.
        log_probs: of these tokens under the sampling policy; empty if `generate` sampled them.
        kept: number of tokens that could have been sampled at each position; empty if `generate` sampled.
        sampling_mask: these tokens as bits, uint8 of shape (rows, longest completion, ceil(vocab / 8)) on the model's
            device; None = every token could have been sampled.
    """

    completion_ids: list[list[int]]
    log_probs: list[list[float]]
    kept: list[list[int]]
    sampling_mask: torch.Tensor | None


class GroupCache(Cache):
    """Keys and values of `groups x slots` completions: the prompt's stored once per group, the rest in buffers.

    Attributes:
        prompts, own: keys and values of each layer, of shape (groups or rows, kv_heads, tokens, head_dim).
        prompt_bias: 0 for a prompt's tokens and -inf for its padding, shape (groups, 1, 1, 1, prompt).
        column: index of the next token in the buffers, shape (1,).
    """

    def __init__(self, prompts: DynamicCache, lengths: torch.Tensor, slots: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        layers = cast(list[Any], prompts.layers)  # attention layers only: see `shared_prefix_obstacle`
        # Under autocast both are float32, and every step would cast them again.
        dtype = compute_dtype(layers[0].values)
        self.prompts: list[KeysAndValues] = [(layer.keys.to(dtype), layer.values.to(dtype)) for layer in layers]
        columns = torch.arange(self.prompts[0][0].shape[2], device=lengths.device)
        self.prompt_bias = torch.where(columns >= lengths[:, None, None, None, None], -torch.inf, 0.0)
        self.column = torch.zeros(1, dtype=torch.long, device=lengths.device)
        rows, (_, heads, _, head_dim) = len(lengths) * slots, layers[0].values.shape
        self.own: list[KeysAndValues] = [
            (keys.new_zeros(rows, heads, WINDOW, head_dim), values.new_zeros(rows, heads, WINDOW, head_dim))
            for keys, values in self.prompts
        ]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeysAndValues:
        """Store the states (rows, heads, 1, head_dim) of each row's newest token; returns the buffers."""
        for buffer, states in zip(self.own[layer_idx], (key_states, value_states), strict=True):
            buffer.index_copy_(2, self.column, states.to(buffer.dtype))
        return self.own[layer_idx]

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, scaling: float
    ) -> torch.Tensor:
        """Attention of the newest tokens (rows, heads, 1, head_dim) to their prompts and completions."""
        prompt_keys, prompt_values = self.prompts[layer_idx]
        groups, kv_heads, prompt, head_dim = prompt_keys.shape
        # Treat the query heads of a key head, and the rows of a group, as positions.
        query = query.to(keys.dtype).reshape(groups, self.slots, kv_heads, -1, head_dim)
        shared = query.transpose(1, 2)  # (groups, kv_heads, slots, heads a kv_head, head_dim)
        to_prompt = dot_products(shared.flatten(2, 3), prompt_keys).view(*shared.shape[:4], prompt)
        to_prompt = (to_prompt * scaling + self.prompt_bias).transpose(1, 2).flatten(0, 1)
        own_bias = torch.where(torch.arange(keys.shape[2], device=keys.device) > self.column, -torch.inf, 0.0)
        to_own = dot_products(query.flatten(0, 1), keys) * scaling + own_bias
        weights = torch.cat([to_prompt, to_own], -1).softmax(-1).to(values.dtype)
        on_prompt, on_own = weights.split([prompt, keys.shape[2]], -1)
        on_prompt = on_prompt.unflatten(0, (groups, self.slots)).transpose(1, 2).flatten(2, 3)
        mixed = (on_prompt @ prompt_values).view(shared.shape).transpose(1, 2).flatten(0, 1)
        return (mixed + on_own @ values).flatten(1, 2)[:, None]  # (rows, 1, heads, head_dim)

    def select(self, groups: torch.Tensor, rows: torch.Tensor) -> None:
        """Keep only these groups and rows, equally many rows per group."""
        self.prompts = [(keys[groups], values[groups]) for keys, values in self.prompts]
        self.own = [(keys[rows], values[rows]) for keys, values in self.own]
        self.prompt_bias, self.slots = self.prompt_bias[groups], len(rows) // len(groups)

    def widen(self) -> None:
        """Double the buffers."""
        self.own = [(doubled(keys), doubled(values)) for keys, values in self.own]


def doubled(buffer: torch.Tensor) -> torch.Tensor:
    """Pad a buffer (..., tokens, size) with zeros to twice the tokens."""
    return torch.nn.functional.pad(buffer, (0, 0, 0, buffer.shape[-2]))


def dot_products(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Queries (a, b, n, head_dim) times keys (a, b, m, head_dim), float32 of shape (a, b, n, m)."""
    if query.is_cuda and query.dtype != torch.float32:  # avoids rounding the products to bf16
        pairs = torch.bmm(query.flatten(0, 1), keys.flatten(0, 1).mT, out_dtype=torch.float32)
        return pairs.unflatten(0, query.shape[:2])
    return (query @ keys.mT).float()


def rollout_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    *,
    group_cache: GroupCache,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`GroupCache.attend` as an attention function of transformers."""
    return group_cache.attend(query, key, value, module.layer_idx, scaling), None


AttentionInterface.register(ATTENTION, rollout_attention)


@contextmanager
def attention_of(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Use another attention function."""
    config = model.config.get_text_config()
    before, config._attn_implementation = config._attn_implementation, implementation
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without dropout and checkpointing."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def cast_once(model: torch.nn.Module) -> Iterator[None]:
    """Make autocast cache the casts of frozen weights too, which it otherwise repeats at every use."""
    frozen = [weight for weight in model.parameters() if weight.is_floating_point() and not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


class Decoding:
    """The state of a batch. All tensors that a step uses keep their addresses between two resizes.

    Rows are `groups x slots`; groups with fewer completions than the largest have idle slots, which write to an extra
    last row of the output.
    """

    graphs = True  # whether to use CUDA graphs: until a capture fails

    def __init__(self, model: PreTrainedModel, sampler: TokenSampler, fp32_head: bool, pad_token_id: int) -> None:
        self.model, self.sampler, self.fp32_head, self.pad_token_id = model, sampler, fp32_head, pad_token_id

    def start(self, groups: list[list[int]], counts: list[int], uniform: torch.Tensor) -> None:
        """Compute each group's prompt, and sample the first token of each of its `counts` completions.

        Args:
            uniform: a random number in [0, 1) per token, float64 of shape (completions, longest completion).
        """
        device, slots, max_new_tokens = self.model.device, max(counts), uniform.shape[1]
        self.uniform = uniform.to(device)
        lengths = torch.tensor([len(prompt) for prompt in groups], device=device)
        prompts = pad_sequence([torch.tensor(prompt, device=device) for prompt in groups], True, self.pad_token_id)
        cache = DynamicCache(config=self.model.config)
        hidden = self.model.base_model(input_ids=prompts, **{CACHE: cache}, use_cache=True).last_hidden_state
        self.cache = GroupCache(cache, lengths, slots)

        rows, total = len(groups) * slots, sum(counts)
        offsets = torch.tensor([0, *counts]).cumsum(0)
        places = [offsets[g] + s if s < count else total for g, count in enumerate(counts) for s in range(slots)]
        self.place = torch.tensor(places, device=device)  # the output row of each row of the batch
        self.finished = self.place == total
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.positions = lengths.repeat_interleave(slots)[:, None]
        self.tokens = torch.empty(rows, 1, dtype=torch.long, device=device)
        self.ids = torch.full((total + 1, max_new_tokens), self.pad_token_id, device=device)
        self.log_probs = torch.zeros(total + 1, max_new_tokens, device=device)
        self.kept = torch.zeros(total + 1, max_new_tokens, dtype=torch.int32, device=device)
        self.mask: torch.Tensor | None = None
        last = hidden[torch.arange(len(groups), device=device), lengths - 1].repeat_interleave(slots, 0)
        self._draw(last)

    def advance(self) -> None:
        """Sample a token for every row."""
        hidden = self.model.base_model(
            input_ids=self.tokens,
            position_ids=self.positions,
            use_cache=True,
            group_cache=self.cache,
            **{CACHE: self.cache},
        ).last_hidden_state
        self.positions += 1
        self.cache.column += 1
        self._draw(hidden[:, 0])

    def captured(self) -> Callable[[], None]:
        """`advance` as a CUDA graph; if capture fails, `advance` itself, from then on.

        An eager step must have run before. Other threads may use the device meanwhile.
        """
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        state = generator.clone_state()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.advance()
        except RuntimeError as error:
            # A failed capture leaves torch on its stream, and the generator in its capturing state.
            torch.cuda.set_stream(stream)
            generator.graphsafe_set_state(state)
            Decoding.graphs = False
            cause = first_line(error.__context__ or error)  # ending a failed capture also fails
            logger.warning(f"CUDA graph capture failed; falling back to slower eager decoding: {cause}")
            return self.advance
        return graph.replay

    def _draw(self, hidden: torch.Tensor) -> None:
        logits = head_logits(self.model.get_output_embeddings(), hidden, self.fp32_head)
        row = self.place.clamp(max=len(self.uniform) - 1)
        drawn = self.sampler(logits, self.step, self.uniform[row, self.step.expand(len(row))])
        self._write(drawn)
        self.tokens.copy_(drawn.tokens[:, None])
        self.finished |= (drawn.tokens[:, None] == self.sampler.eos).any(1)
        self.step += 1

    def _write(self, drawn: SampledTokens) -> None:
        """Store the sampled tokens."""
        where = self.place, self.step.expand(len(self.place))
        self.ids.index_put_(where, drawn.tokens)
        self.log_probs.index_put_(where, drawn.log_probs)
        self.kept.index_put_(where, drawn.kept)
        if drawn.mask is not None:
            if self.mask is None:
                self.mask = drawn.mask.new_zeros(len(self.ids), WINDOW, drawn.mask.shape[-1])
            self.mask.index_put_(where, drawn.mask)

    def running(self) -> list[int]:
        """Number of unfinished rows per group; a step's only synchronisation with the device."""
        return (~self.finished).view(-1, self.cache.slots).sum(1).tolist()

    def resize(self, step: int, running: list[int]) -> bool:
        """Before a step: shrink the batch if it can be halved, and double full buffers; returns whether it did."""
        groups, slots = [number for number, rows in enumerate(running) if rows], max(running)
        smaller = 2 * len(groups) * slots <= len(self.finished)
        if smaller:
            self._keep(torch.tensor(groups, device=self.finished.device), slots)
        full = step == self.cache.own[0][0].shape[2]
        if full:
            self.cache.widen()
            self.mask = None if self.mask is None else doubled(self.mask)
        return smaller or full

    def _keep(self, groups: torch.Tensor, slots: int) -> None:
        """Keep these groups and `slots` rows of each, unfinished ones first."""
        finished = self.finished.view(-1, self.cache.slots)[groups].to(torch.uint8)
        first = finished.argsort(dim=1, stable=True)[:, :slots]
        rows = (groups[:, None] * self.cache.slots + first).flatten()
        self.cache.select(groups, rows)
        for name in ("place", "finished", "positions", "tokens"):
            setattr(self, name, getattr(self, name)[rows])


def sample_completions(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    params: SamplingParams,
    max_new_tokens: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    fp32_head: bool = True,
    uniform: torch.Tensor | None = None,
) -> Rollout:
    """Sample a completion for each prompt; adjacent equal prompts are a group and computed once.

    The distribution is that of `generate(do_sample=True)` with the same settings.

    Args:
        uniform: random numbers in [0, 1), float64 of shape (prompts, max_new_tokens); None = from torch's generator.
    """
    if uniform is None:
        uniform = torch.rand(len(prompt_ids), max_new_tokens, dtype=torch.float64)
    runs = [(prompt, len(list(rows))) for prompt, rows in groupby(prompt_ids)]
    sampler = TokenSampler(params, eos_token_ids, model.device)
    decoding = Decoding(model, sampler, fp32_head, pad_token_id)
    with torch.no_grad(), cast_once(model):
        decoding.start([prompt for prompt, _ in runs], [count for _, count in runs], uniform)
        with attention_of(model, ATTENTION):
            decode(decoding, max_new_tokens)
    rows = slice(len(prompt_ids))
    mask = None if decoding.mask is None else decoding.mask[rows]
    return gather_rollout(decoding.ids[rows], decoding.log_probs[rows], decoding.kept[rows], mask, eos_token_ids)


def decode(decoding: Decoding, max_new_tokens: int) -> None:
    """Sample until all rows are finished; on a GPU, replay a CUDA graph after the first step of each size."""
    advance, steps_of_size = decoding.advance, 0
    for step in range(1, max_new_tokens):
        running = decoding.running()
        if not any(running):
            return
        if decoding.resize(step, running):
            advance, steps_of_size = decoding.advance, 0
        if steps_of_size == 1 and decoding.ids.is_cuda and decoding.graphs:
            advance = decoding.captured()
        advance()
        steps_of_size += 1


def gather_rollout(
    ids: torch.Tensor,
    log_probs: torch.Tensor,
    kept: torch.Tensor,
    masks: torch.Tensor | None,
    eos_token_ids: list[int],
) -> Rollout:
    """A rollout from tensors of shape (rows, columns, ...), cut after the first end-of-text token of each row."""
    rows = ids.tolist()
    lengths = [completion_length(row, eos_token_ids) for row in rows]
    completions, of_tokens, numbers = (
        [row[:n] for row, n in zip(each, lengths, strict=True)] for each in (rows, log_probs.tolist(), kept.tolist())
    )
    return Rollout(completions, of_tokens, numbers, None if masks is None else masks[:, : max(lengths)])


def completion_length(ids: list[int], eos_token_ids: list[int]) -> int:
    """Number of tokens up to and including the first end-of-text token."""
    return next((place + 1 for place, token in enumerate(ids) if token in eos_token_ids), len(ids))
