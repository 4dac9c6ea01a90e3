"""Lazy graph tensors over a checkpoint.

Nothing is read while a graph is built. Each tensor is read, converted or quantized when the
writer asks for its bytes, and let go of afterwards, so that memory holds one weight at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from phi_edge.errors import CheckpointError

from .checkpoint import Checkpoint
from .findings import Findings
from .prequantized import GROUP, StoredBlocks, read_blocks, stored_blocks
from .recipe import (
    Array,
    BlockQuantizer,
    Blocks,
    CalibratedQuantizer,
    ChannelQuantizer,
    Channels,
    Recipe,
)


class Weights:
    """Gives the layers of a graph their parameters.

    Attributes:
        dtype: Floating-point type of the graph.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        float_dtype: str,
        recipe: Recipe | None = None,
        findings: Findings | None = None,
    ) -> None:
        """Take what parameters are made from.

        Args:
            checkpoint: Where the weights are.
            float_dtype: "float32" or "float16".
            recipe: How to quantize them; everything stays in floating point when None.
            findings: What calibration found, for a recipe that wants it.
        """
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._stored: StoredBlocks | None = None
        decoder = recipe.quantizer(GROUP, "") if recipe else None
        if checkpoint.layout and decoder and not isinstance(decoder, ChannelQuantizer):
            self._stored = stored_blocks(checkpoint.layout, decoder.accuracy_level)
        self._findings = findings
        self.dtype = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}[float_dtype]

    def quantizer(
        self, group: str, name: str
    ) -> BlockQuantizer | StoredBlocks | ChannelQuantizer | None:
        """Return how a layer is quantized, or is already; None for floating point."""
        if group == GROUP and self._stored:
            return self._stored
        return self._recipe.quantizer(group, name) if self._recipe else None

    def accuracy_level(self, name: str, quantizer: BlockQuantizer | StoredBlocks) -> int:
        """Return the accuracy level of a quantized layer's kernel."""
        if self._findings and name in self._findings.linears:
            return self._findings.linears[name].accuracy_level
        return quantizer.accuracy_level

    def shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the shape of the named tensors, stacked along their first axis."""
        shapes = [self._checkpoint.shapes[name] for name in names]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def parameter(
        self, *names: str, shape: tuple[int, ...] | None = None, transpose: bool = False
    ) -> nn.Parameter:
        """Make a parameter of the named tensors, stacked along their first axis.

        Args:
            names: Official tensor names.
            shape: New shape, when it differs from the stored one.
            transpose: Swap the two axes of a matrix, as `MatMul` wants its right side.
        """
        stored = self.shape(names)
        target = shape or (stored[::-1] if transpose else stored)
        dtype = self.dtype.numpy()

        def load() -> Array:
            array = self._read(names)
            array = array.T if transpose else array.reshape(target)
            with np.errstate(over="ignore"):
                converted = np.ascontiguousarray(array, dtype=dtype)
            if not np.isfinite(converted).all():
                raise CheckpointError(
                    f"{' + '.join(names)} has values that {self.dtype.name} cannot hold"
                )
            return converted

        return lazy_parameter(load, self.dtype, target)

    def quantized_parameters(
        self, names: Sequence[str], quantizer: BlockQuantizer | StoredBlocks, *, flat: bool = False
    ) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter | None]:
        """Make the packed values, scales and zero points of the named matrices, stacked.

        Args:
            names: Official tensor names.
            quantizer: From `quantizer`.
            flat: Give the packed values as [out_features, bytes], without the axis of blocks.
        """
        out_features, in_features = self.shape(names)
        num_blocks = quantizer.num_blocks(in_features)
        block_bytes = quantizer.block_size * quantizer.bits // 8

        def quantize() -> Blocks:
            with named_errors(names):
                return self._quantize(names, quantizer)

        parts = _SharedParts(quantize, 2 if quantizer.symmetric else 3)
        packed_shape = (
            (out_features, num_blocks * block_bytes)
            if flat
            else (out_features, num_blocks, block_bytes)
        )
        packed = lazy_parameter(
            lambda: parts.take(0).reshape(packed_shape), ir.DataType.UINT8, packed_shape
        )
        scales = lazy_parameter(
            lambda: parts.take(1).astype(self.dtype.numpy()),
            self.dtype,
            (out_features, num_blocks),
        )
        if quantizer.symmetric:
            return packed, scales, None
        zero_points = lazy_parameter(
            lambda: parts.take(2),
            ir.DataType.UINT8,
            (out_features, -(-num_blocks * quantizer.bits // 8)),
        )
        return packed, scales, zero_points

    def channel_parameters(
        self, names: Sequence[str], quantizer: ChannelQuantizer
    ) -> tuple[nn.Parameter, nn.Parameter]:
        """Make the int8 values [in_features, out_features] and scales of the named matrices.

        Args:
            names: Official tensor names.
            quantizer: From `quantizer`.
        """
        out_features, in_features = self.shape(names)

        def quantize() -> Channels:
            with named_errors(names):
                return self._quantize_channels(names, quantizer)

        parts = _SharedParts(quantize, 2)
        values = lazy_parameter(
            lambda: np.ascontiguousarray(parts.take(0).T),
            ir.DataType.INT8,
            (in_features, out_features),
        )
        scales = lazy_parameter(lambda: parts.take(1), ir.DataType.FLOAT, (out_features,))
        return values, scales

    def cache_scales(self, layer: int) -> tuple[nn.Parameter, nn.Parameter] | None:
        """Make the scales of a layer's cached keys and values, by head and channel.

        The int8 number q in the cache stands for q * scale. None for a cache in floating point.
        """
        if self._recipe is None or self._recipe.cache_dtype != "int8" or self._findings is None:
            return None
        keys, values = self._findings.cache_scales[layer]
        shape = (1, keys.shape[0], 1, keys.shape[1])
        key, value = (
            lazy_parameter(partial(scales.reshape, shape), ir.DataType.FLOAT, shape)
            for scales in (keys, values)
        )
        return key, value

    def _quantize(self, names: Sequence[str], quantizer: BlockQuantizer | StoredBlocks) -> Blocks:
        if isinstance(quantizer, StoredBlocks):
            (name,) = names
            return read_blocks(quantizer.layout, name, self._checkpoint.tensors)
        if self._findings and isinstance(quantizer, CalibratedQuantizer):
            return self._findings.blocks(_layer(names))
        return quantizer.quantize(self._read(names))

    def _quantize_channels(self, names: Sequence[str], quantizer: ChannelQuantizer) -> Channels:
        if self._findings and (name := _layer(names)) in self._findings.linears:
            return self._findings.channels(name)
        return quantizer.quantize_channels(self._read(names))

    def _read(self, names: Sequence[str]) -> Array:
        arrays = [self._read_one(name) for name in names]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def _read_one(self, name: str) -> Array:
        array = self._checkpoint.read(name)
        divisor = self._findings.divisors.get(name) if self._findings else None
        return array if divisor is None else array.astype(np.float32) / divisor


def _layer(names: Sequence[str]) -> str:
    """Return the name of a layer, the first of those that are stacked, from its tensors'."""
    return names[0].removesuffix(".weight")


@contextmanager
def named_errors(names: Sequence[str]) -> Iterator[None]:
    """Say which tensors cannot be quantized."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{' + '.join(names)}: {error}") from None


def lazy_parameter(
    load: Callable[[], Array], dtype: ir.DataType, shape: tuple[int, ...]
) -> nn.Parameter:
    """Make a parameter whose value is computed when it is written."""
    tensor = ir.LazyTensor(lambda: ir.tensor(load()), dtype=dtype, shape=ir.Shape(shape))
    return nn.Parameter(shape, data=tensor)


class _SharedParts:
    """Several arrays that come from one computation and are taken once each."""

    def __init__(self, compute: Callable[[], tuple[Array | None, ...]], count: int) -> None:
        self._compute = compute
        self._count = count
        self._taken = 0
        self._parts: tuple[Array | None, ...] = ()
        self._lock = threading.Lock()

    def take(self, index: int) -> Array:
        """Take one array; all are forgotten when each has been taken."""
        with self._lock:
            if not self._parts:
                self._parts, self._taken = self._compute(), 0
            part = self._parts[index]
            self._taken += 1
            if self._taken == self._count:
                self._parts = ()
        if part is None:
            raise IndexError(f"there is no part {index}")
        return part
