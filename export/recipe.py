"""What the exporter expects of a recipe and its quantizers. Those of `quantize` fit.

Neither package imports the other: in a checkout both are at the top, in a wheel in `phi_edge`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
# Packed values, scales and zero points of a matrix; no zero points when it is symmetric.
Blocks = tuple[Array, Array, Array | None]
# int8 values and scales of a matrix.
Channels = tuple[Array, Array]
# Blocks and their kernel's accuracy level, their error, the same with rounded activations, channels
# where these are good enough, and their error where they were asked for.
CalibratedBlocks = tuple[Blocks, int, float, float, Channels | None, float | None]


class BlockQuantizer(Protocol):
    """Quantizes blocks of weights, as `MatMulNBits` multiplies them."""

    @property
    def bits(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def symmetric(self) -> bool: ...
    @property
    def accuracy_level(self) -> int: ...
    def num_blocks(self, in_features: int, /) -> int: ...
    def quantize(self, weight: Array, /) -> Blocks: ...


@runtime_checkable
class ChannelQuantizer(Protocol):
    """Quantizes output channels of weights, as `DynamicQuantizeMatMul` multiplies them."""

    def quantize_channels(self, weight: Array, /) -> Channels: ...


@runtime_checkable
class CalibratedQuantizer(Protocol):
    """Quantizes the blocks of a linear layer for its inputs on samples."""

    def input_scales(
        self, weight: Floats, rows: Floats, prefill: ChannelQuantizer | None, /
    ) -> Floats | None: ...
    def calibrate(
        self, weight: Floats, moments: Floats, rows: Floats, prefill: ChannelQuantizer | None, /
    ) -> CalibratedBlocks: ...


class Recipe(Protocol):
    """Says how weights are stored."""

    @property
    def precision(self) -> str: ...
    @property
    def float_dtype(self) -> str: ...
    @property
    def is_calibrated(self) -> bool: ...
    @property
    def cache_dtype(self) -> str: ...
    @property
    def vision(self) -> Sequence[object]: ...
    @property
    def prefill(self) -> ChannelQuantizer | None: ...
    def quantizer(self, group: str, name: str, /) -> BlockQuantizer | ChannelQuantizer | None: ...
    def vision_errors(self, weight: Array, rows: Floats, /) -> list[float]: ...
    def for_vision(self, errors: Mapping[str, Sequence[float]], /) -> Recipe: ...
    def for_prefill(self, kept: Collection[str], /) -> Recipe | None: ...
    def as_dict(self) -> dict[str, Any]: ...
