"""Weight quantization: what to quantize how (`recipe`), and the arithmetic."""

from __future__ import annotations

from .blockwise import BlockQuantizer, QuantizedBlocks, dequantize
from .calibrated import CalibratedBlocks, CalibratedQuantizer
from .channelwise import ChannelQuantizer, QuantizedChannels
from .recipe import Activations, CacheDtype, Method, PrefillDtype, Recipe, make_recipe

__all__ = [
    "Activations",
    "BlockQuantizer",
    "CacheDtype",
    "CalibratedBlocks",
    "CalibratedQuantizer",
    "ChannelQuantizer",
    "Method",
    "PrefillDtype",
    "QuantizedBlocks",
    "QuantizedChannels",
    "Recipe",
    "dequantize",
    "make_recipe",
]
