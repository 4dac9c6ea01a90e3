"""Channelwise weight quantization, as ONNX Runtime's `DynamicQuantizeMatMul` multiplies it.

Each output channel of a weight matrix [out_features, in_features] has one scale: `w = q * scale`,
with `q` an integer of 7 bits, from -63 to 63. The kernel rounds its inputs to 8 bits, all on one
grid. So that a row with large inputs does not coarsen the others', the graph divides every row by
its largest input first, and multiplies its outputs by it.

The eighth bit would do harm on x64 without VNNI: two products of full 8-bit integers are added in
16 bits there, and saturate. See "U8S8" in
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html

Twice as fast as blocks on many rows at once, and slower on one, which has twice the bytes to read.

Kernel: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
(`com.microsoft.DynamicQuantizeMatMul`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .activations import relative_error
from .grid import Floats

# 2 * 255 * 63 fits into 16 bits.
_TOP = np.float32(63)


class QuantizedChannels(NamedTuple):
    """A quantized weight matrix.

    Attributes:
        values: int8 [out_features, in_features].
        scales: float32 [out_features].
    """

    values: npt.NDArray[np.int8]
    scales: Floats

    def dequantize(self) -> Floats:
        """Return the float32 matrix that this stands for."""
        return self.values * self.scales[:, None]


@dataclasses.dataclass(frozen=True)
class ChannelQuantizer:
    """Quantizes the output channels of a matrix to the nearest of 7-bit values.

    Attributes:
        bits: Of the integers.
    """

    bits: Literal[7] = 7

    def quantize_channels(self, weight: npt.NDArray[np.generic]) -> QuantizedChannels:
        """Quantize a matrix of any float dtype [out_features, in_features].

        Raises:
            ValueError: Weights are not finite.
        """
        weight = weight.astype(np.float32, copy=False)
        scales = np.abs(weight).max(axis=1) / _TOP
        if not np.isfinite(scales).all():
            raise ValueError("weights are infinite or undefined")
        scales[scales == 0] = 1
        values = np.rint(weight / scales[:, None])
        return QuantizedChannels(values.astype(np.int8), scales)

    def product(self, weight: Floats, rows: Floats) -> Floats:
        """Compute `rows @ weight.T` [num_rows, out_features] as the kernel does, in float32."""
        product: Floats = round_rows(rows) @ self.quantize_channels(weight).dequantize().T
        return product

    def error(self, weight: Floats, rows: Floats) -> float:
        """Compute the root of the squared error of the outputs, as a part of their size."""
        return relative_error(self.product(weight, rows), rows @ weight.T)


def round_rows(rows: Floats) -> Floats:
    """Round inputs [num_rows, in_features] as the graph does, all of them in one run.

    Source: `DynamicQuantizeLinear`, https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html
    """
    largest = np.abs(rows).max(axis=1, keepdims=True)
    largest[largest == 0] = 1
    scaled = rows / largest
    low, high = min(scaled.min(initial=0), 0), max(scaled.max(initial=0), 0)
    step = np.float32(high - low) / 255 or np.float32(1)
    zero_point = np.rint(-low / step)
    values = np.clip(np.rint(scaled / step) + zero_point, 0, 255) - zero_point
    rounded: Floats = values * step * largest
    return rounded
