"""What 8-bit activations do to a layer, and the scales that make a layer easier to quantize."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .grid import Floats

Product = Callable[[Floats, Floats], Floats]

# Exponents that are tried: 0 leaves a layer as it is, 1 makes all of its inputs alike.
_EXPONENTS = (0.0, 0.25, 0.5, 0.75)
# A layer is only touched where that takes away this part of the error: error compensation makes up
# for what less would gain.
_WORTH = 0.3
_LEAST_SCALE = 1e-4


def round_activations(rows: Floats, block_size: int) -> Floats:
    """Round inputs as the CPU kernels of `MatMulNBits` do at accuracy level 4.

    Each block of a row, the blocks of its weights, gets a scale of its own, `max(abs) / 127`, and
    integers from -127 to 127. Source: `QuantizeARow_CompInt8` in ONNX Runtime's MLAS.

    Args:
        rows: float32 [num_rows, in_features].
        block_size: Inputs that share a scale.
    """
    num_rows, in_features = rows.shape
    padded = np.zeros((num_rows, -(-in_features // block_size) * block_size), np.float32)
    padded[:, :in_features] = rows
    blocks = padded.reshape(num_rows, -1, block_size)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    rounded: Floats = np.rint(blocks / scales) * scales
    return rounded.reshape(num_rows, -1)[:, :in_features]


def find_input_scales(
    weight: Floats, rows: Floats, quantized_products: Sequence[Product]
) -> Floats | None:
    """Find scales that move a layer's outlying inputs into its weights.

    `weight * scales` times `rows / scales` is the same product, and the one that quantization
    harms least is looked for among powers of the inputs' sizes: J. Lin et al., "AWQ:
    Activation-aware Weight Quantization for LLM Compression and Acceleration",
    https://arxiv.org/abs/2306.00978. As the error counts the rounding of activations too, this
    also is the search of G. Xiao et al., "SmoothQuant", https://arxiv.org/abs/2211.10438.

    Args:
        weight: float32 [out_features, in_features]; some of the outputs are enough.
        rows: float32 [num_rows, in_features], inputs that the layer was seen to get.
        quantized_products: Each gives `rows @ weight.T` as one of the kernels would that the layer
            is run by; their squared errors count alike.

    Returns:
        float32 [in_features], or None where no scaling is worth it.
    """
    exact = rows @ weight.T
    sizes = np.sqrt(np.mean(rows**2, axis=0))
    mean = float(sizes.mean())
    if mean == 0:
        return None
    sizes = np.maximum(sizes / mean, _LEAST_SCALE)
    errors = []
    for exponent in _EXPONENTS:
        scales = sizes**exponent
        scaled = weight * scales, rows / scales
        errors.append(sum(_squared_error(run(*scaled), exact) for run in quantized_products))
    best = int(np.argmin(errors))
    if errors[best] > (1 - _WORTH) * errors[0]:
        return None
    found: Floats = (sizes ** _EXPONENTS[best]).astype(np.float32)
    return found


def relative_error(found: Floats, exact: Floats) -> float:
    """Compute the root of the squared error of outputs, as a part of the outputs' own size."""
    size = float(np.sum(exact.astype(np.float64) ** 2))
    return float(np.sqrt(_squared_error(found, exact) / size)) if size else 0.0


def _squared_error(found: Floats, exact: Floats) -> float:
    return float(np.sum((found - exact).astype(np.float64) ** 2))
