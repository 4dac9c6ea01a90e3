"""Self-attention over the key/value cache, and the positions that its layers share.

One table holds the rotations of both LongRoPE regimes, and positions are shifted into the part
that applies. So the graph needs no branch for them, which not every provider runs, and no copy of
a table at every step, which is what such a branch costs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from .config import Phi3VConfig
from .layers import CONTRIB, Linear, Op
from .rope import rope_table
from .weights import Weights, lazy_parameter

# From so many new tokens on, `PromptAttention` is faster than `GroupQueryAttention` over an int8
# cache whatever the cache holds; with little in it, from 16 on.
_MIN_PROMPT_TOKENS = 32
# Its memory grows with the sequence, and that of `GroupQueryAttention` does not: at 8,192 tokens it
# takes 0.5 GB for chunks of 256 with the dimensions of Phi-3.5-vision.
_MAX_PROMPT_LENGTH = 8192

_CacheScales = tuple[nn.Parameter, nn.Parameter]
_Attended = tuple[ir.Value, ir.Value, ir.Value]


class PromptPositions(NamedTuple):
    """What `PromptAttention` needs beside `Positions`.

    Attributes:
        applies: bool [1], whether there are many new tokens, in a sequence that is not too long,
            and buffers that hold them.
        total: int64 [1], tokens in the longest sequence.
        places: int64 [batch, kv_heads, sequence, 3], where in the cache each new token goes.
        mask: float32 [batch, 1, sequence, total], 0 where a new token sees another, else the
            lowest number.
    """

    applies: ir.Value
    total: ir.Value
    places: ir.Value
    mask: ir.Value


class Positions(NamedTuple):
    """Inputs that the attention of every layer shares.

    Attributes:
        last: int32 [batch], index of each sequence's last token (`seqlens_k`).
        total_length: int32 scalar, tokens in the longest sequence.
        position_ids: int64 [batch, sequence], index into the RoPE tables of each new token.
        cos, sin: RoPE tables.
        prompt: For prompts over an int8 cache.
    """

    last: ir.Value
    total_length: ir.Value
    position_ids: ir.Value
    cos: ir.Value
    sin: ir.Value
    prompt: PromptPositions | None


class PositionInputs(nn.Module):
    """Derives positions from the attention mask."""

    def __init__(self, config: Phi3VConfig, weights: Weights) -> None:
        super().__init__()
        self.original_length = config.original_max_position_embeddings
        self.num_heads = config.num_key_value_heads
        # `MultiHeadAttention` wants a head of keys for every head of queries.
        is_multi_head = config.num_key_value_heads == config.num_attention_heads
        self.for_prompts = is_multi_head and weights.cache_scales(0) is not None
        length = self.original_length + config.max_position_embeddings
        shape = (length, config.head_size // 2)
        dtype = weights.dtype.numpy()
        self.cos = lazy_parameter(
            lambda: rope_table(config, "cos").astype(dtype), weights.dtype, shape
        )
        self.sin = lazy_parameter(
            lambda: rope_table(config, "sin").astype(dtype), weights.dtype, shape
        )

    def forward(
        self,
        op: Op,
        inputs_embeds: ir.Value,
        attention_mask: ir.Value,
        rope_length: ir.Value,
        past: ir.Value,
    ) -> Positions:
        lengths = op.ReduceSum(attention_mask, [1], keepdims=0)
        total_length = op.Shape(attention_mask, start=1, end=2)
        new_tokens = op.Shape(inputs_embeds, start=1, end=2)
        # Sequences may be shorter than the longest; padding stands on the right.
        first = op.Unsqueeze(op.Max(op.Sub(lengths, new_tokens), 0), [1])
        positions = op.Add(first, op.Range(0, op.Squeeze(new_tokens), 1))
        is_long = op.Greater(op.Max(total_length, rope_length), self.original_length)
        shift = op.Mul(op.Cast(is_long, to=ir.DataType.INT64), self.original_length)
        prompt = None
        if self.for_prompts:
            prompt = self._prompt(op, positions, new_tokens, total_length, past)
        return Positions(
            last=op.Cast(op.Sub(lengths, 1), to=ir.DataType.INT32),
            total_length=op.Cast(op.Squeeze(total_length), to=ir.DataType.INT32),
            position_ids=op.Add(positions, shift),
            cos=self.cos,
            sin=self.sin,
            prompt=prompt,
        )

    def _prompt(
        self,
        op: Op,
        positions: ir.Value,
        new_tokens: ir.Value,
        total_length: ir.Value,
        past: ir.Value,
    ) -> PromptPositions:
        is_prompt = op.GreaterOrEqual(new_tokens, _MIN_PROMPT_TOKENS)
        longest = op.Min(op.Shape(past, start=2, end=3), _MAX_PROMPT_LENGTH)
        has_room = op.LessOrEqual(total_length, longest)
        each = op.Unsqueeze(positions, [1, 3])
        seen = op.LessOrEqual(op.Range(0, op.Squeeze(total_length), 1), each)
        # Coordinates of a token in a buffer [batch, kv_heads, capacity, head_size].
        sizes = op.Concat(op.Shape(past, start=0, end=2), op.Shape(positions, start=1), [1], axis=0)
        batch = op.Range(0, op.Squeeze(op.Shape(past, start=0, end=1)), 1)
        coordinates = (
            op.Unsqueeze(batch, [1, 2, 3]),
            op.Unsqueeze(op.Range(0, self.num_heads, 1), [0, 2, 3]),
            each,
        )
        places = op.Concat(*(op.Expand(part, sizes) for part in coordinates), axis=-1)
        return PromptPositions(
            applies=op.And(is_prompt, has_room),
            total=total_length,
            places=places,
            mask=op.Where(seen, 0.0, float(np.finfo(np.float32).min)),
        )


class Attention(nn.Module):
    """Self-attention over the cache; queries, keys and values come from one projection."""

    def __init__(
        self, config: Phi3VConfig, weights: Weights, index: int, *, fused_rotary: bool
    ) -> None:
        super().__init__()
        name = f"model.layers.{index}.self_attn"
        scales = weights.cache_scales(index)
        self.qkv_proj = Linear(weights, "decoder", f"{name}.qkv_proj")
        self.o_proj = Linear(weights, "decoder", f"{name}.o_proj")
        self.attend = CachedAttention(config, scales, fused_rotary=fused_rotary)
        self.attend_prompt = PromptAttention(config, scales) if scales else None

    def forward(
        self, op: Op, x: ir.Value, past: tuple[ir.Value, ir.Value], at: Positions
    ) -> _Attended:
        qkv = self.qkv_proj(op, x)
        if self.attend_prompt is None or at.prompt is None:
            attended, key, value = self.attend(op, qkv, past, at)
        else:
            attended, key, value = op.If(
                at.prompt.applies,
                then_branch=_branch(op, self.attend_prompt, qkv, past, at, at.prompt),
                else_branch=_branch(op, self.attend, qkv, past, at),
                _outputs=3,
            )
        return self.o_proj(op, attended), key, value


def _branch(op: Op, attention: nn.Module, *inputs: Any) -> ir.Graph:
    """Make a branch of an `If`, a graph without inputs, of an attention."""
    outputs = [ir.val(None) for _ in range(3)]
    graph: ir.Graph = op.builder.subgraph(lambda inner: attention(inner, *inputs), [], outputs)
    return graph


class CachedAttention(nn.Module):
    """`GroupQueryAttention`, which reads the cache as it is and appends to it in place."""

    def __init__(
        self, config: Phi3VConfig, scales: _CacheScales | None, *, fused_rotary: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.fused_rotary = fused_rotary
        self.key_scales: nn.Parameter | None = None
        self.value_scales: nn.Parameter | None = None
        if scales:
            self.key_scales, self.value_scales = scales

    def forward(
        self, op: Op, qkv: ir.Value, past: tuple[ir.Value, ir.Value], at: Positions
    ) -> _Attended:
        inputs = (
            (qkv, None, None, *past, at.last, at.total_length, at.cos, at.sin, at.position_ids)
            if self.fused_rotary
            else (*_rotated(op, self.config, qkv, at), *past, at.last, at.total_length)
        )
        cache: dict[str, Any] = {}
        if self.key_scales is not None:
            # The inputs between are for models of other kinds.
            unused = [None] * (12 - len(inputs))
            inputs = (*inputs, *unused, self.key_scales, self.value_scales)
            cache = {f"{part}_quant_type": "PER_CHANNEL" for part in "kv"}
            cache["kv_cache_bit_width"] = 8
        attended: _Attended = op.GroupQueryAttention(
            *inputs,
            num_heads=self.config.num_attention_heads,
            kv_num_heads=self.config.num_key_value_heads,
            do_rotary=int(self.fused_rotary),
            **cache,
            _outputs=3,
            **CONTRIB,
        )
        return attended


class PromptAttention(nn.Module):
    """Attention of many new tokens over an int8 cache, in half the time.

    `GroupQueryAttention` of ONNX Runtime 1.32 takes 2.2 to 2.7 times as long for them over an int8
    cache as over a float32 one. Here the cache is converted first, and multiplied in floating
    point. Scales are taken to the queries and the result, which are smaller than the cache.
    """

    def __init__(self, config: Phi3VConfig, scales: _CacheScales) -> None:
        super().__init__()
        self.config = config
        self.key_scales, self.value_scales = scales

    def forward(
        self,
        op: Op,
        qkv: ir.Value,
        past: tuple[ir.Value, ir.Value],
        at: Positions,
        prompt: PromptPositions,
    ) -> _Attended:
        query, *new = _rotated(op, self.config, qkv, at)
        key_scales, value_scales = (
            op.Reshape(scales, [-1]) for scales in (self.key_scales, self.value_scales)
        )
        key, value = (
            self._append(op, part, cached, scales, prompt)
            for part, cached, scales in zip(new, past, (key_scales, value_scales), strict=True)
        )
        attended = op.MultiHeadAttention(
            op.Mul(query, key_scales),
            self._read(op, key, prompt),
            self._read(op, value, prompt),
            None,
            None,
            prompt.mask,
            num_heads=self.config.num_attention_heads,
            **CONTRIB,
        )
        return op.Mul(attended, value_scales), key, value

    def _append(
        self, op: Op, x: ir.Value, cached: ir.Value, scales: ir.Value, prompt: PromptPositions
    ) -> ir.Value:
        """Quantize `x` [batch, sequence, width] into the buffer `cached`, in place."""
        # With a scale for each channel, the kernel of `QuantizeLinear` is 25 times slower.
        zero_point = op.Constant(value=ir.tensor(np.int8(0)))
        quantized = op.QuantizeLinear(op.Div(x, scales), 1.0, zero_point)
        heads = op.Reshape(quantized, [0, 0, -1, self.config.head_size])
        by_head = op.Transpose(heads, perm=[0, 2, 1, 3])
        buffer: ir.Value = op.ScatterND(cached, prompt.places, by_head)
        return buffer

    @staticmethod
    def _read(op: Op, buffer: ir.Value, prompt: PromptPositions) -> ir.Value:
        """Read the part of a buffer that holds tokens, as floating-point numbers."""
        used = op.Slice(buffer, [0], prompt.total, [2])
        numbers: ir.Value = op.Cast(used, to=ir.DataType.FLOAT)
        return numbers


def _rotated(
    op: Op, config: Phi3VConfig, qkv: ir.Value, at: Positions
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Split queries, keys and values [batch, sequence, width]; rotate the first two."""
    heads = (config.num_attention_heads, *[config.num_key_value_heads] * 2)
    sizes = [count * config.head_size for count in heads]
    query, key, value = op.Split(qkv, sizes, axis=-1, _outputs=3)
    query, key = (
        op.RotaryEmbedding(part, at.position_ids, at.cos, at.sin, num_heads=count, **CONTRIB)
        for part, count in zip((query, key), heads[:2], strict=True)
    )
    return query, key, value
