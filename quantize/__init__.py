"""Weight quantization: what to quantize how (`recipe`), and the arithmetic."""

from __future__ import annotations

from .blockwise import BlockQuantizer, QuantizedBlocks, dequantize
from .calibrated import CalibratedBlocks, CalibratedQuantizer
from .recipe import Activations, CacheDtype, Method, Recipe, make_recipe

__all__ = [
    "Activations",
    "BlockQuantizer",
    "CacheDtype",
    "CalibratedBlocks",
    "CalibratedQuantizer",
    "Method",
    "QuantizedBlocks",
    "Recipe",
    "dequantize",
    "make_recipe",
]
