"""The decoder graph: embeddings and cached keys and values -> logits of the last positions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from phi_edge import package

from .attention import Attention, PositionInputs, Positions
from .config import Phi3VConfig
from .layers import CONTRIB, Linear, Op, expose_inputs, make_model
from .weights import Weights

# The linear layers of a decoder layer, in the order in which they run.
LAYER_LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


class MLP(nn.Module):
    """SwiGLU; gate and up come from one projection, the gate first."""

    def __init__(self, config: Phi3VConfig, weights: Weights, name: str) -> None:
        super().__init__()
        self.inner = config.intermediate_size
        self.gate_up_proj = Linear(weights, "decoder", f"{name}.gate_up_proj")
        self.down_proj = Linear(weights, "decoder", f"{name}.down_proj")

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        gate_up = self.gate_up_proj(op, x)
        gate, up = op.Split(gate_up, [self.inner, self.inner], axis=-1, _outputs=2)
        # QuickGelu(x, 1) is SiLU: x * sigmoid(x).
        return self.down_proj(op, op.Mul(op.QuickGelu(gate, alpha=1.0, **CONTRIB), up))


class RMSNorm(nn.Module):
    """RMS norm of `x`, or of `x + residual`, which it then gives too."""

    def __init__(self, config: Phi3VConfig, weights: Weights, name: str) -> None:
        super().__init__()
        self.epsilon = config.rms_norm_eps
        self.weight = weights.parameter(f"{name}.weight")

    def forward(self, op: Op, x: ir.Value, residual: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        if residual is None:
            # Registered by ONNX Runtime in the standard domain.
            return op.SimplifiedLayerNormalization(
                x, self.weight, epsilon=self.epsilon, axis=-1, stash_type=1
            ), x
        normed, _, _, total = op.SkipSimplifiedLayerNormalization(
            x,
            residual,
            self.weight,
            epsilon=self.epsilon,
            _outputs=["normed", ir.Value(name=""), ir.Value(name=""), "sum"],
            **CONTRIB,
        )
        return normed, total


class DecoderLayer(nn.Module):
    """Attention and MLP, each after a norm and added to the residual stream."""

    def __init__(
        self, config: Phi3VConfig, weights: Weights, index: int, *, fused_rotary: bool
    ) -> None:
        super().__init__()
        name = f"model.layers.{index}"
        self.input_layernorm = RMSNorm(config, weights, f"{name}.input_layernorm")
        self.self_attn = Attention(config, weights, index, fused_rotary=fused_rotary)
        self.post_attention_layernorm = RMSNorm(config, weights, f"{name}.post_attention_layernorm")
        self.mlp = MLP(config, weights, f"{name}.mlp")

    def forward(
        self,
        op: Op,
        x: ir.Value,
        residual: ir.Value | None,
        past: tuple[ir.Value, ir.Value],
        at: Positions,
    ) -> tuple[ir.Value, ir.Value, tuple[ir.Value, ir.Value]]:
        x, residual = self.input_layernorm(op, x, residual)
        x, key, value = self.self_attn(op, x, past, at)
        x, residual = self.post_attention_layernorm(op, x, residual)
        return self.mlp(op, x), residual, (key, value)


class Decoder(nn.Module):
    """The language model behind its embeddings."""

    def __init__(self, config: Phi3VConfig, weights: Weights, *, fused_rotary: bool) -> None:
        super().__init__("model")
        self.positions = PositionInputs(config, weights)
        self.layers = nn.ModuleList(
            [
                DecoderLayer(config, weights, i, fused_rotary=fused_rotary)
                for i in range(config.num_hidden_layers)
            ]
        )
        self.norm = RMSNorm(config, weights, "model.norm")
        self.lm_head = Linear(weights, "lm_head", "lm_head")

    def forward(
        self,
        op: Op,
        inputs_embeds: ir.Value,
        attention_mask: ir.Value,
        rope_length: ir.Value,
        num_earlier: ir.Value,
        *pasts: ir.Value,
    ) -> list[ir.Value]:
        at = self.positions(op, inputs_embeds, attention_mask, rope_length, pasts[0])
        x, residual = inputs_embeds, None
        pairs = zip(pasts[::2], pasts[1::2], strict=True)
        presents: list[ir.Value] = []
        for layer, past in zip(self.layers, pairs, strict=True):
            x, residual, present = layer(op, x, residual, past, at)
            presents += present
        x, _ = self.norm(op, x, residual)
        end = [np.iinfo(np.int64).max]
        last = op.Slice(x, op.Sub(-1, num_earlier), end, [1])
        scores = op.Cast(self.lm_head(op, last), to=ir.DataType.FLOAT)
        # onnxruntime-genai wants one position in `logits`.
        logits, earlier = op.Slice(scores, [-1], end, [1]), op.Slice(scores, [0], [-1], [1])
        return [logits, earlier, *presents]


def build_decoder(config: Phi3VConfig, weights: Weights, *, fused_rotary: bool) -> ir.Model:
    """Build the graph.

    `inputs_embeds` [batch, sequence, hidden_size], `attention_mask` int64 [batch, total],
    `rope_length` and `num_earlier` int64 [1] (may be left out), cache -> `logits` float32 [batch,
    1, vocab_size], `earlier_logits` float32 [batch, num_earlier, vocab_size], cache. The cache is
    int8 where the weights come with scales for it.

    Args:
        config: Dimensions.
        weights: Parameters.
        fused_rotary: Rotate inside `GroupQueryAttention`, which not every provider can.
    """

    def cache_shape(length: str) -> list[int | str | None]:
        return ["batch", config.num_key_value_heads, length, config.head_size]

    names = [(i, part) for i in range(config.num_hidden_layers) for part in ("key", "value")]
    cache_dtype = weights.dtype if weights.cache_scales(0) is None else ir.DataType.INT8
    inputs = [
        ir.val(package.INPUTS_EMBEDS, weights.dtype, ["batch", "sequence", config.hidden_size]),
        ir.val(package.ATTENTION_MASK, ir.DataType.INT64, ["batch", "total"]),
        _optional_length(package.ROPE_LENGTH),
        _optional_length(package.NUM_EARLIER),
        *(ir.val(package.past_name(*name), cache_dtype, cache_shape("past")) for name in names),
    ]
    outputs = [
        ir.val(package.LOGITS, ir.DataType.FLOAT, ["batch", 1, config.vocab_size]),
        ir.val(package.EARLIER_LOGITS, ir.DataType.FLOAT, ["batch", "earlier", config.vocab_size]),
        *(
            ir.val(package.present_name(*name), cache_dtype, cache_shape("present"))
            for name in names
        ),
    ]
    decoder = Decoder(config, weights, fused_rotary=fused_rotary)
    return make_model(package.DECODER, inputs, outputs, decoder)


def _optional_length(name: str) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(np.zeros(1, np.int64), name=name))


class LayerAlone(nn.Module):
    """One decoder layer with positions of its own."""

    def __init__(self, config: Phi3VConfig, weights: Weights, index: int) -> None:
        super().__init__("model")
        self.positions = PositionInputs(config, weights)
        self.layer = DecoderLayer(config, weights, index, fused_rotary=True)

    def forward(
        self,
        op: Op,
        x: ir.Value,
        residual: ir.Value,
        attention_mask: ir.Value,
        past_key: ir.Value,
        past_value: ir.Value,
    ) -> tuple[ir.Value, ...]:
        rope_length = op.Shape(attention_mask, start=1, end=2)
        at = self.positions(op, x, attention_mask, rope_length, past_key)
        x, residual, cached = self.layer(op, x, residual, (past_key, past_value), at)
        return x, residual, *cached


def build_layer(config: Phi3VConfig, weights: Weights, index: int) -> ir.Model:
    """Build one decoder layer that gives the inputs of its linear layers too.

    `x` and `residual` [batch, sequence, hidden_size], `attention_mask` int64 [batch, total], keys
    and values of earlier tokens -> `x`, `residual`, keys and values of all tokens, and the inputs
    of `LAYER_LINEARS`. The weights have to be in floating point.
    """
    state: list[int | str | None] = ["batch", "sequence", config.hidden_size]
    cache: list[int | str | None] = ["batch", config.num_key_value_heads, "past", config.head_size]
    inputs = [
        ir.val("x", weights.dtype, state),
        ir.val("residual", weights.dtype, state),
        ir.val(package.ATTENTION_MASK, ir.DataType.INT64, ["batch", "total"]),
        ir.val("past_key", weights.dtype, cache),
        ir.val("past_value", weights.dtype, cache),
    ]
    outputs = [
        *(ir.val(name, weights.dtype, state) for name in ("next_x", "next_residual")),
        *(ir.val(name, weights.dtype, cache) for name in ("key", "value")),
    ]
    model = make_model("layer", inputs, outputs, LayerAlone(config, weights, index))
    expose_inputs(model, LAYER_LINEARS)
    return model
