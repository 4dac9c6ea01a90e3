"""Weight quantization: what to quantize how (`recipe`), and the arithmetic (`blockwise`)."""

from __future__ import annotations

from .blockwise import BlockQuantizer, QuantizedBlocks, dequantize
from .recipe import Recipe, make_recipe

__all__ = ["BlockQuantizer", "QuantizedBlocks", "Recipe", "dequantize", "make_recipe"]
