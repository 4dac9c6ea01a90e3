"""Writes the probes of `phi_edge.engine.probe`: `python -m export.probe phi_edge/engine/probes`.

A probe is a graph of the operators that packages use, with the attributes and types of one
target, and an output for each. Its weights are random. Beside it stand inputs, and the outputs
that follow from the operators' documentation:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import sys
from math import erf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import GraphBuilder

from phi_edge import package
from phi_edge.engine.providers import TARGETS, Provider, find_provider

from .layers import CONTRIB, IR_VERSION, OPSET, Op
from .packed import Blocks

Array = npt.NDArray[Any]

# Name of a probe -> a provider whose packages use what it tries.
PROBES = {provider.probe: provider for provider in map(find_provider, TARGETS)}

_HEADS, _HEAD_SIZE, _BLOCK = 2, 32, 32
_HIDDEN = _HEADS * _HEAD_SIZE
_PAST, _NEW, _CAPACITY = 2, 3, 8
_EPSILON = 1e-5
_ALPHA = 1.702
# Weights of `MatMulNBits`, in the order of its inputs.
_BLOCKS = ("packed", "scales", "zero_points")


class Probe:
    """One graph with its arrays."""

    def __init__(self, provider: Provider) -> None:
        """Draw the inputs and weights, of the types that a provider's packages have."""
        rng = np.random.default_rng(0)
        self.dtype = dtype = provider.float_dtype
        self.fused_rotary = provider.fuses_rotary
        # Activations are rounded to 8 bits, or the kernel decides.
        self.accuracy_level = 4 if provider.has_int8_kernels else 0

        def normal(*shape: int, scale: float = 1.0) -> Array:
            # In float16 for all, so that every probe has the same expected outputs.
            return (scale * rng.standard_normal(shape)).astype(np.float16).astype(dtype)

        blocks = 3 * _HIDDEN, _HIDDEN // _BLOCK
        cache = 1, _HEADS, _CAPACITY, _HEAD_SIZE
        self.inputs = {
            "x": normal(1, _NEW, _HIDDEN),
            "residual": normal(1, _NEW, _HIDDEN),
            "past_key": normal(*cache),
            "past_value": normal(*cache),
        }
        angles = np.outer(np.arange(16), 0.5 ** np.arange(_HEAD_SIZE // 2))
        self.weights = {
            "packed": rng.integers(0, 256, (*blocks, _BLOCK // 2), dtype=np.uint8),
            "scales": (0.01 + 0.01 * rng.random(blocks)).astype(np.float16).astype(dtype),
            "zero_points": rng.integers(0, 256, (blocks[0], blocks[1] // 2), dtype=np.uint8),
            "gain": normal(_HIDDEN),
            "shift": normal(_HIDDEN),
            "cos": np.cos(angles).astype(dtype),
            "sin": np.sin(angles).astype(dtype),
        }

    def build(self) -> ir.Model:
        """Build the graph."""
        dtype = _onnx_type(self.dtype)
        inputs = {name: ir.val(name, dtype, array.shape) for name, array in self.inputs.items()}
        graph = ir.Graph(
            list(inputs.values()),
            [],
            nodes=[],
            name="probe",
            opset_imports={"": OPSET, "com.microsoft": 1},
        )
        op = GraphBuilder(graph).op
        weights = {
            name: op.initializer(ir.tensor(array), name) for name, array in self.weights.items()
        }
        for name, result in self._operators(op, inputs, weights).items():
            result.name, result.dtype = name, dtype
            graph.outputs.append(result)
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="phi_edge")

    def _operators(
        self, op: Any, given: dict[str, ir.Value], weights: dict[str, ir.Value]
    ) -> dict[str, ir.Value]:
        x, residual = given["x"], given["residual"]
        gain, shift = weights["gain"], weights["shift"]
        qkv = op.MatMulNBits(
            x,
            *(weights[name] for name in _BLOCKS),
            K=_HIDDEN,
            N=3 * _HIDDEN,
            bits=4,
            block_size=_BLOCK,
            accuracy_level=self.accuracy_level,
            **CONTRIB,
        )
        query, key, value = op.Split(qkv, [_HIDDEN] * 3, axis=-1, _outputs=3)
        results = {
            "MatMulNBits": qkv,
            "MultiHeadAttention": op.MultiHeadAttention(
                query, key, value, num_heads=_HEADS, **CONTRIB
            ),
            "LayerNormalization": op.LayerNormalization(x, gain, shift, epsilon=_EPSILON),
            "SimplifiedLayerNormalization": op.SimplifiedLayerNormalization(
                x, gain, epsilon=_EPSILON, axis=-1, stash_type=1
            ),
            "QuickGelu": op.QuickGelu(x, alpha=_ALPHA, **CONTRIB),
            "Gelu": op.Gelu(x, **CONTRIB),
        }
        # Packages use their sums too, which not every provider gives.
        for name, *affine in (
            ("SkipLayerNormalization", gain, shift, shift),
            ("SkipSimplifiedLayerNormalization", gain),
        ):
            results[name] = _with_sum(op, name, x, residual, *affine)
        position_ids = op.initializer(ir.tensor(np.arange(_PAST, _PAST + _NEW)[None]), "rows")
        rotary = (weights["cos"], weights["sin"])
        if not self.fused_rotary:
            query, key = (
                op.RotaryEmbedding(part, position_ids, *rotary, num_heads=_HEADS, **CONTRIB)
                for part in (query, key)
            )
            results["RotaryEmbedding"] = query
        last = op.initializer(ir.tensor(np.array([_PAST + _NEW - 1], np.int32)), "last")
        total = op.initializer(ir.tensor(np.array(_PAST + _NEW, np.int32)), "total")
        packed = (qkv, None, None) if self.fused_rotary else (query, key, value)
        results["GroupQueryAttention"], _, _ = op.GroupQueryAttention(
            *packed,
            given["past_key"],
            given["past_value"],
            last,
            total,
            *((*rotary, position_ids) if self.fused_rotary else ()),
            num_heads=_HEADS,
            kv_num_heads=_HEADS,
            do_rotary=int(self.fused_rotary),
            _outputs=3,
            **CONTRIB,
        )
        return results

    def expected(self) -> dict[str, Array]:
        """Compute what the outputs should be, float32."""
        given = {name: array.astype(np.float32) for name, array in self.inputs.items()}
        weights = {name: array.astype(np.float32) for name, array in self.weights.items()}
        x, gain, shift = given["x"], weights["gain"], weights["shift"]
        total = x + given["residual"]
        blocks = Blocks(*(self.weights[name] for name in _BLOCKS))
        qkv = x @ blocks.dequantize(bits=4).T
        query, key, value = (_heads(part) for part in np.split(qkv, 3, axis=-1))
        cos, sin = (weights[name][_PAST : _PAST + _NEW] for name in ("cos", "sin"))
        rotated_query, rotated_key = (_rotate(part, cos, sin) for part in (query, key))
        keys = np.concatenate([given["past_key"][:, :, :_PAST], rotated_key], axis=2)
        values = np.concatenate([given["past_value"][:, :, :_PAST], value], axis=2)
        outputs = {
            "MatMulNBits": qkv,
            "MultiHeadAttention": _attend(query, key, value, np.ones((_NEW, _NEW), bool)),
            "GroupQueryAttention": _attend(
                rotated_query, keys, values, np.tri(_NEW, _PAST + _NEW, _PAST, dtype=bool)
            ),
            "LayerNormalization": _layer_norm(x) * gain + shift,
            "SkipLayerNormalization": np.concatenate(
                [_layer_norm(total + shift) * gain + shift, total + shift], axis=-1
            ),
            "SimplifiedLayerNormalization": _rms_norm(x) * gain,
            "SkipSimplifiedLayerNormalization": np.concatenate(
                [_rms_norm(total) * gain, total], axis=-1
            ),
            "QuickGelu": x / (1 + np.exp(-_ALPHA * x)),
            "Gelu": x * _normal_cdf(x),
        }
        if not self.fused_rotary:
            outputs["RotaryEmbedding"] = _merged(rotated_query)
        return {name: output.astype(np.float32) for name, output in outputs.items()}


def _onnx_type(dtype: str) -> ir.DataType:
    return ir.DataType.from_numpy(np.dtype(dtype))


def _with_sum(op: Op, name: str, *inputs: ir.Value) -> ir.Value:
    """Add a norm; give its result and, beside it, the sum that it was taken of."""
    outputs = [f"{name}.normed", ir.Value(name=""), ir.Value(name=""), f"{name}.sum"]
    norm = getattr(op, name)
    normed, _, _, total = norm(*inputs, epsilon=_EPSILON, _outputs=outputs, **CONTRIB)
    both: ir.Value = op.Concat(normed, total, axis=-1)
    return both


def _heads(x: Array) -> Array:
    """Turn [1, tokens, hidden] into [1, heads, tokens, head size]."""
    heads: Array = x.reshape(1, -1, _HEADS, _HEAD_SIZE).swapaxes(1, 2)
    return heads


def _merged(x: Array) -> Array:
    merged: Array = x.swapaxes(1, 2).reshape(1, -1, _HIDDEN)
    return merged


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
    scores = np.where(mask, query @ key.swapaxes(2, 3) / np.sqrt(_HEAD_SIZE), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return _merged(weights / weights.sum(axis=-1, keepdims=True) @ value)


def _layer_norm(x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return _rms_norm(centred)


def _rms_norm(x: Array) -> Array:
    normed: Array = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + _EPSILON)
    return normed


def _normal_cdf(x: Array) -> Array:
    values: Array = np.vectorize(lambda value: (1 + erf(value / sqrt(2))) / 2)(x)
    return values


def build_identity(dtype: str) -> ir.Model:
    """Build a vision graph that passes features on, for `phi_edge.engine.genai`."""
    features = ir.val(package.PIXEL_VALUES, _onnx_type(dtype), ["num_image_tokens", "hidden_size"])
    given = ir.val(package.IMAGE_FEATURES, features.dtype, features.shape)
    node = ir.node("Identity", [features], outputs=[given])
    graph = ir.Graph([features], [given], nodes=[node], opset_imports={"": OPSET}, name="identity")
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="phi_edge")


def write_probes(folder: Path) -> None:
    """Write the folder of probes: `NAME.onnx` and `NAME.npz` of each, and the identity graphs."""
    folder.mkdir(exist_ok=True)
    for name, provider in PROBES.items():
        probe = Probe(provider)
        ir.save(probe.build(), folder / f"{name}.onnx")
        arrays: dict[str, Any] = probe.inputs | probe.expected()
        np.savez_compressed(folder / f"{name}.npz", **arrays)
    for dtype in ("float32", "float16"):
        ir.save(build_identity(dtype), folder / f"identity_{dtype}.onnx")


if __name__ == "__main__":
    write_probes(Path(sys.argv[1]))
