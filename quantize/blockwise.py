"""Blockwise weight quantization, in the layout of ONNX Runtime's `MatMulNBits`.

The weights of each output of a matrix [out_features, in_features] are cut into blocks of
`block_size` inputs. Each block has one scale and one zero point: `w = (q - zero_point) * scale`,
with `q` an unsigned integer of `bits` bits. Two 4-bit values share a byte, the earlier one in the
low half. The same bytes serve `GatherBlockQuantized`, which looks them up instead.

Layout: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
(`com.microsoft.MatMulNBits`, `com.microsoft.GatherBlockQuantized`).
"""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from .activations import relative_error, round_activations
from .gptq import compensate, error_factor
from .grid import Floats, Grids

# Accuracy levels of `MatMulNBits`: activations rounded to 8 bits, which is fast, or in float32.
ROUNDED, EXACT = 4, 1

# Outputs are quantized in groups of about this many weights: the temporaries of such a group are
# small and stay in the processor's cache.
_GROUP_WEIGHTS = 2**18
# Outputs of a group where errors are compensated.
_COMPENSATED_OUTPUTS = 1024


class QuantizedBlocks(NamedTuple):
    """A quantized weight matrix.

    Attributes:
        packed: uint8 [out_features, num_blocks, block_size * bits / 8].
        scales: float32 [out_features, num_blocks].
        zero_points: uint8 [out_features, ceil(num_blocks * bits / 8)], or None when symmetric.
    """

    packed: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.uint8] | None


@dataclasses.dataclass(frozen=True)
class BlockQuantizer:
    """Quantizes the blocks of a matrix.

    Attributes:
        bits: 4 or 8.
        block_size: Weights that share a scale: a power of two, at least 16.
        symmetric: Fixed zero point in the middle of the range (8 or 128), none stored.
        accuracy_level: `MatMulNBits` attribute for these weights: `ROUNDED`, `EXACT`, or 0, which
            leaves it to the kernel.
        scale_dtype: Type that the graph stores scales in. They are rounded to it before the
            values are, so that the values make up for the rounding.
        method: How the values are chosen. "nearest": a block's grid spans its weights, and each
            goes to the nearest value. Else the best of several grids.
    """

    bits: Literal[4, 8]
    block_size: int
    symmetric: bool
    accuracy_level: int = 0
    scale_dtype: str = "float32"
    method: str = "nearest"

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8, not {self.bits}")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two >= 16, not {self.block_size}")

    def num_blocks(self, in_features: int) -> int:
        """Count the blocks of this many inputs; the last may be partly padding."""
        return -(-in_features // self.block_size)

    def quantize(
        self, weight: npt.NDArray[np.generic], moments: Floats | None = None
    ) -> QuantizedBlocks:
        """Quantize a matrix of any float dtype [out_features, in_features].

        Args:
            weight: The matrix.
            moments: float32 [in_features, in_features], the sum of `outer(x, x)` over inputs `x`
                that the layer was seen to get. With it, later weights make up for the errors of
                earlier ones.

        Raises:
            ValueError: Weights are not finite, or too large for the type of the scales.
        """
        grids = Grids(self.bits, self.symmetric, self.scale_dtype, search=self.method != "nearest")
        factor = None if moments is None else error_factor(moments)
        out_features, in_features = weight.shape
        num_blocks = self.num_blocks(in_features)
        packed = np.empty((out_features, num_blocks, self.block_size * self.bits // 8), np.uint8)
        scales = np.empty((out_features, num_blocks), np.float32)
        zero_points = np.empty((out_features, num_blocks), np.uint8)

        def quantize_group(group: slice) -> None:
            if factor is None:
                blocks = np.zeros(
                    (group.stop - group.start, num_blocks * self.block_size), np.float32
                )
                blocks[:, :in_features] = weight[group]
                blocks = blocks.reshape(-1, num_blocks, self.block_size)
                scales[group], zeros = grids.choose(blocks)
                values = grids.round(blocks, scales[group], zeros).astype(np.uint8)
            else:
                values, scales[group], zeros = compensate(
                    weight[group].astype(np.float32), self.block_size, grids, factor
                )
            zero_points[group] = zeros
            packed[group] = _pack(values, self.bits)

        # Compensation goes through the columns one by one, so it takes larger groups.
        step = max(1, _GROUP_WEIGHTS // in_features) if factor is None else _COMPENSATED_OUTPUTS
        groups = [
            slice(start, min(start + step, out_features)) for start in range(0, out_features, step)
        ]
        # NumPy lets go of the interpreter lock inside its loops, so threads share the work; the
        # threads of its matrix products would only get into their way.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(quantize_group, groups))
        return QuantizedBlocks(
            packed, scales, None if self.symmetric else _pack(zero_points, self.bits)
        )

    def product(self, weight: Floats, rows: Floats) -> Floats:
        """Compute `rows @ weight.T` [num_rows, out_features] as the kernel does, in float32."""
        quantized = dequantize(self.quantize(weight), self.bits, weight.shape[1])
        if self.accuracy_level == ROUNDED:
            rows = round_activations(rows, self.block_size)
        product: Floats = rows @ quantized.T
        return product

    def error(self, weight: Floats, rows: Floats) -> float:
        """Compute the root of the squared error of the outputs, as a part of their size."""
        return relative_error(self.product(weight, rows), rows @ weight.T)


def dequantize(blocks: QuantizedBlocks, bits: int, in_features: int) -> npt.NDArray[np.float32]:
    """Return the float32 matrix [out_features, in_features] that quantized blocks stand for."""
    out_features, num_blocks, _ = blocks.packed.shape
    values = _unpack(blocks.packed, bits).astype(np.float32)
    if blocks.zero_points is None:
        values -= 2 ** (bits - 1)
    else:
        values -= _unpack(blocks.zero_points, bits)[:, :num_blocks, None]
    values *= blocks.scales[:, :, None]
    return values.reshape(out_features, -1)[:, :in_features]


def _pack(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack values of `bits` bits along the last axis, low half of a byte first."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    packed: npt.NDArray[np.uint8] = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return packed


def _unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Undo `_pack`; an odd count comes back with one value too many."""
    if bits == 8:
        return packed
    return np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
