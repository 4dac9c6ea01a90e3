"""Weight quantization: what to quantize how (`recipe`), and the arithmetic (`blockwise`)."""

from __future__ import annotations

from .blockwise import BlockQuantizer, Method, QuantizedBlocks, dequantize
from .recipe import Recipe, make_recipe

__all__ = ["BlockQuantizer", "Method", "QuantizedBlocks", "Recipe", "dequantize", "make_recipe"]
