"""Write an OpenVINO IR as optimum-intel would (int4, symmetric, group 128), random weights.

    python -m benchmarks.speed.peers.openvino_ir OUT.xml

The embedding and the output matrix are in 8 bits, as NNCF leaves them unless told otherwise.
Needs the package `openvino`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from . import HEADS, HIDDEN, INNER, LAYERS, VOCABULARY

_HEAD_SIZE = HIDDEN // HEADS
_GROUP = 128
_RNG = np.random.default_rng(0)
_POOL = _RNG.integers(0, 256, 2**24 - 3, np.uint8)

Node = Any


def random_bytes(*shape: int) -> npt.NDArray[np.uint8]:
    """Draw bytes of its own for each weight: a file holds equal constants once."""
    return np.resize(np.roll(_POOL, _RNG.integers(_POOL.size)), shape)


def int4_weight(rows: int, columns: int) -> Node:
    """Make 4-bit values [rows, groups, 128] with float16 scales, as float32 [rows, columns]."""
    groups = columns // _GROUP
    packed = random_bytes(rows * columns // 2)
    shape = ov.Shape([rows, groups, _GROUP])
    values = op.constant(ov.Tensor(packed, shape, ov.Type.i4), shared_memory=False)
    scales = np.full((rows, groups, 1), 0.0043, np.float16)
    product = op.multiply(op.convert(values, "f16"), op.constant(scales))
    return op.convert(op.reshape(product, [rows, columns], special_zero=False), "f32")


def int8_weight(rows: int, columns: int) -> Node:
    """Make 8-bit values with a float16 scale for each row, as float32."""
    values = random_bytes(rows, columns).view(np.int8)
    scales = np.full((rows, 1), 0.00027, np.float16)
    product = op.multiply(op.convert(op.constant(values), "f16"), op.constant(scales))
    return op.convert(product, "f32")


def linear(x: Node, weight: Node) -> Node:
    """Multiply: `x @ weight.T`."""
    return op.matmul(x, weight, transpose_a=False, transpose_b=True)


def rms_norm(x: Node) -> Node:
    """Normalize: `x / sqrt(mean(x^2) + eps) * weight`."""
    mean = op.reduce_mean(op.power(x, _scalar(2.0)), [-1], keep_dims=True)
    root = op.sqrt(op.add(mean, _scalar(1e-5)))
    weight = op.constant(np.ones((1, 1, HIDDEN), np.float32))
    return op.multiply(weight, op.multiply(x, op.divide(_scalar(1.0), root)))


def rotate(x: Node, cos: Node, sin: Node) -> Node:
    """Rotate the halves of [batch, heads, sequence, head_size] against each other."""
    first, second = op.variadic_split(x, 3, [_HEAD_SIZE // 2] * 2).outputs()
    turned = op.concat([op.multiply(second, _scalar(-1.0)), first], -1)
    return op.add(op.multiply(x, cos), op.multiply(turned, sin))


class Graph:
    """The decoder, with its cache as state."""

    def __init__(self) -> None:
        self.input_ids = op.parameter([-1, -1], np.int64, name="input_ids")
        self.mask = op.parameter([-1, -1], np.int64, name="attention_mask")
        self.positions = op.parameter([-1, -1], np.int64, name="position_ids")
        self.beams = op.parameter([-1], np.int32, name="beam_idx")
        self.assigns: list[Node] = []

    def build(self) -> ov.Model:
        """Build the model: ids, mask, positions, beam indices -> logits of the last position."""
        x = op.gather(int8_weight(VOCABULARY, HIDDEN), self.input_ids, op.constant(0))
        cos, sin = self._rotations()
        bias = self._causal_bias()
        for layer in range(LAYERS):
            x = op.add(x, self._attention(layer, rms_norm(x), cos, sin, bias))
            gate_up = linear(rms_norm(x), int4_weight(2 * INNER, HIDDEN))
            gate, up = op.variadic_split(gate_up, 2, [INNER, INNER]).outputs()
            x = op.add(x, linear(op.multiply(op.swish(gate), up), int4_weight(HIDDEN, INNER)))
        last = op.slice(rms_norm(x), [-1], [np.iinfo(np.int64).max], [1], [1])
        logits = op.result(linear(last, int8_weight(VOCABULARY, HIDDEN)), name="logits")
        logits.output(0).set_names({"logits"})
        inputs = [self.input_ids, self.mask, self.positions, self.beams]
        for node in inputs:
            node.output(0).set_names({node.friendly_name})
        return ov.Model([logits], self.assigns, inputs, "phi3")

    def _attention(self, layer: int, x: Node, cos: Node, sin: Node, bias: Node) -> Node:
        qkv = linear(x, int4_weight(3 * HIDDEN, HIDDEN))
        query, key, value = (
            op.transpose(
                op.reshape(part, [0, 0, HEADS, _HEAD_SIZE], special_zero=True), [0, 2, 1, 3]
            )
            for part in op.variadic_split(qkv, 2, [HIDDEN] * 3).outputs()
        )
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        key, value = self._cached(layer, "key", key), self._cached(layer, "value", value)
        attended = op.scaled_dot_product_attention(query, key, value, bias)
        attended = op.transpose(attended, [0, 2, 1, 3])
        return linear(
            op.reshape(attended, [0, 0, HIDDEN], special_zero=True), int4_weight(HIDDEN, HIDDEN)
        )

    def _cached(self, layer: int, part: str, new: Node) -> Node:
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, HEADS, -1, _HEAD_SIZE])
        info.data_type = ov.Type.f32
        info.variable_id = f"past_key_values.{layer}.{part}present.{layer}.{part}"
        variable = Variable(info)
        batch = op.gather(op.shape_of(self.input_ids, "i64"), op.constant([0]), op.constant(0))
        sizes = [op.constant(np.array([size], np.int64)) for size in (HEADS, 0, _HEAD_SIZE)]
        empty = op.broadcast(_scalar(0.0), op.concat([batch, *sizes], 0))
        past = op.gather(op.read_value(empty, variable), self.beams, op.constant(0))
        present = op.concat([past, new], 2)
        self.assigns.append(op.assign(present, variable))
        return present

    def _rotations(self) -> tuple[Node, Node]:
        half = np.arange(0, _HEAD_SIZE, 2, dtype=np.float32) / _HEAD_SIZE
        inverse = (1 / 10000**half)[None, None].astype(np.float32)
        positions = op.convert(op.unsqueeze(self.positions, [2]), "f32")
        angles = op.multiply(positions, op.constant(inverse))
        both = op.unsqueeze(op.concat([angles, angles], -1), [1])
        return op.cos(both), op.sin(both)

    def _causal_bias(self) -> Node:
        """Make [batch, 1, sequence, total]: 0 where a key is not later than the query."""
        total = op.gather(op.shape_of(self.mask, "i64"), op.constant(1), op.constant(0))
        keys = op.range(op.constant(np.int64(0)), total, op.constant(np.int64(1)), "i64")
        is_seen = op.less_equal(op.unsqueeze(keys, [0, 1, 2]), op.unsqueeze(self.positions, [1, 3]))
        return op.select(is_seen, _scalar(0.0), _scalar(-1e9))


def _scalar(value: float) -> Node:
    return op.constant(np.float32(value))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    ov.save_model(Graph().build(), parser.parse_args().out, compress_to_fp16=False)


if __name__ == "__main__":
    main()
