"""Error compensation: E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate
Post-Training Quantization for Generative Pre-trained Transformers", https://arxiv.org/abs/2210.17323.

The columns of a matrix are rounded from left to right. What a column's rounding adds to the
layer's output is taken away again by the columns to its right, as far as the inputs that the
layer was seen to get are correlated.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .grid import Floats, Grids

# Added to the diagonal, as a part of its mean: the paper's.
_DAMPING = 0.01
# Columns whose errors are passed on together: few, so that most of the work is matrix products.
_NUM_COLUMNS = 32
# Triangles up to this size are inverted at once.
_SMALL_TRIANGLE = 256


def error_factor(moments: Floats) -> Floats:
    """Compute how a column's error is shared out.

    Args:
        moments: float32 [in_features, in_features], the sum of `outer(x, x)` over the inputs.

    Returns:
        float32, the same shape: the upper triangular `U` with `U.T @ U = inverse(moments)`.
    """
    # With both axes reversed, `moments` is `L @ L.T`; reversed again, `inverse(L)` is `U`.
    # That takes a third of the work of inverting first, and one copy less.
    damped: npt.NDArray[np.float64] = moments[::-1, ::-1].astype(np.float64)
    mean = float(np.trace(damped)) / len(damped)
    damped.flat[:: len(damped) + 1] += _DAMPING * mean if mean > 0 else 1
    lower = np.asarray(np.linalg.cholesky(damped), np.float64)
    del damped
    _invert_lower(lower)
    return np.ascontiguousarray(lower[::-1, ::-1], np.float32)


def _invert_lower(triangle: npt.NDArray[np.float64]) -> None:
    """Invert a lower triangular matrix in place: both halves, then what couples them."""
    size = len(triangle)
    if size <= _SMALL_TRIANGLE:
        triangle[:] = np.linalg.inv(triangle)
        return
    half = size // 2
    first, second = triangle[:half, :half], triangle[half:, half:]
    _invert_lower(first)
    _invert_lower(second)
    triangle[half:, :half] = -second @ (triangle[half:, :half] @ first)


def compensate(
    weight: Floats, block_size: int, grids: Grids, factor: Floats
) -> tuple[npt.NDArray[np.uint8], Floats, Floats]:
    """Quantize the weights of some outputs.

    Args:
        weight: float32 [out_features, in_features].
        block_size: Columns that share a grid.
        grids: How to choose it; for each block when its turn comes, with what earlier columns
            have left to it.
        factor: From `error_factor`.

    Returns:
        Integers [out_features, num_blocks, block_size], scales and zero points [out_features,
        num_blocks].
    """
    out_features, in_features = weight.shape
    num_blocks = -(-in_features // block_size)
    # A block that is not full ends in weights of zero.
    values = np.zeros((num_blocks * block_size, out_features), np.uint8)
    scales, zero_points = (np.empty((out_features, num_blocks), np.float32) for _ in range(2))
    # A column is worked on at once, so its numbers have to lie side by side.
    columns = np.ascontiguousarray(weight.T)
    for number in range(num_blocks):
        first, last = number * block_size, min((number + 1) * block_size, in_features)
        scale, zero_point = grids.choose(np.ascontiguousarray(columns[first:last].T))
        scales[:, number], zero_points[:, number] = scale, zero_point
        for start in range(first, last, _NUM_COLUMNS):
            stop = min(start + _NUM_COLUMNS, last)
            errors = np.empty((stop - start, out_features), np.float32)
            for at in range(start, stop):
                rounded = grids.round(columns[at, :, None], scale, zero_point)[:, 0]
                values[at] = rounded
                error = (columns[at] - (rounded - zero_point) * scale) / factor[at, at]
                errors[at - start] = error
                columns[at + 1 : stop] -= factor[at, at + 1 : stop, None] * error
            columns[stop:] -= factor[start:stop, stop:].T @ errors
        values[last : (number + 1) * block_size] = zero_point.astype(np.uint8)
    return values.T.reshape(out_features, num_blocks, block_size), scales, zero_points
