"""Quantizing a layer by what it was seen to get, and by what that does to its outputs."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from .activations import find_input_scales, relative_error, round_activations
from .blockwise import EXACT, BlockQuantizer, QuantizedBlocks, dequantize
from .channelwise import ChannelQuantizer, QuantizedChannels
from .grid import Floats

# How much faster kernels may add to the error that the weights' rounding to blocks makes: half of
# the squared error, which is less than a quarter of the error itself.
_BUDGET = 0.5
# Outputs of a layer that scales are tried on.
_NUM_TRIED = 512


class CalibratedBlocks(NamedTuple):
    """A layer's weights, and what their quantization does to its outputs.

    Attributes:
        blocks: The weights.
        accuracy_level: The kernel's.
        error: Root of the squared error with exact activations, as a part of the outputs' size.
        rounded_error: The same with activations rounded to 8 bits.
        channels: The weights for the prompt graph, where there is one and they are good enough.
        prefill_error: The same error of such weights; None where none were asked for.
    """

    blocks: QuantizedBlocks
    accuracy_level: int
    error: float
    rounded_error: float
    channels: QuantizedChannels | None = None
    prefill_error: float | None = None


@dataclasses.dataclass(frozen=True)
class CalibratedQuantizer(BlockQuantizer):
    """Quantizes the blocks of a matrix for the inputs that it was seen to get.

    Attributes:
        decides_level: Round activations to 8 bits (`accuracy_level` 4) only where that is within
            the budget.
    """

    method: str = "gptq"
    decides_level: bool = False

    def calibrate(
        self,
        weight: Floats,
        moments: Floats,
        rows: Floats,
        prefill: ChannelQuantizer | None = None,
    ) -> CalibratedBlocks:
        """Quantize a layer; decide on its accuracy level and its weights in the prompt graph.

        Args:
            weight: float32 [out_features, in_features].
            moments: float32 [in_features, in_features], as `quantize` takes them.
            rows: float32 [num_rows, in_features], some of the layer's inputs.
            prefill: What quantizes weights for the prompt graph, where there is one.

        Raises:
            ValueError: Weights are not finite, or too large for the type of the scales.
        """
        blocks = self.quantize(weight, moments)
        quantized = dequantize(blocks, self.bits, weight.shape[1])
        exact = rows @ weight.T
        error = relative_error(rows @ quantized.T, exact)
        rounded = round_activations(rows, self.block_size)
        rounded_error = relative_error(rounded @ quantized.T, exact)
        most = math.sqrt(1 + _BUDGET) * error
        level = EXACT if self.decides_level and rounded_error > most else self.accuracy_level
        found = CalibratedBlocks(blocks, level, error, rounded_error)
        if prefill is None:
            return found
        prefill_error = prefill.error(weight, rows)
        channels = prefill.quantize_channels(weight) if prefill_error <= most else None
        return found._replace(channels=channels, prefill_error=prefill_error)

    def input_scales(
        self, weight: Floats, rows: Floats, prefill: ChannelQuantizer | None = None
    ) -> Floats | None:
        """Find what to multiply the inputs' weights by so that the layer is easier to quantize.

        Args:
            weight: float32 [out_features, in_features].
            rows: float32 [num_rows, in_features], some of the layer's inputs.
            prefill: As `calibrate` takes it.
        """
        # Error compensation would take too long to be tried, and helps all scales alike.
        search = BlockQuantizer(
            self.bits, self.block_size, self.symmetric, self.accuracy_level, method="search"
        )
        step = -(-len(weight) // _NUM_TRIED)
        products = [search.product] if prefill is None else [search.product, prefill.product]
        return find_input_scales(np.ascontiguousarray(weight[::step]), rows, products)
