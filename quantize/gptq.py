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


def error_factor(moments: Floats) -> Floats:
    """How a column's error is shared out.

    Args:
        moments: float32 [in_features, in_features], the sum of `outer(x, x)` over the inputs.

    Returns:
        float32, the same shape: the upper triangular `U` with `U.T @ U = inverse(moments)`.
    """
    damped = moments.astype(np.float64)
    mean = float(np.trace(damped)) / len(damped)
    damped.flat[:: len(damped) + 1] += _DAMPING * mean if mean > 0 else 1
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(damped)).T, np.float32)


def compensate(
    weight: Floats, block_size: int, grids: Grids, factor: Floats
) -> tuple[npt.NDArray[np.uint8], Floats, Floats]:
    """Quantize some rows of a matrix.

    Args:
        weight: float32 [rows, in_features]; is used up.
        block_size: Columns that share a grid.
        grids: How to choose it; for each block when its turn comes, with what earlier columns
            have left to it.
        factor: From `error_factor`.

    Returns:
        Integers [rows, num_blocks, block_size], scales and zero points [rows, num_blocks].
    """
    rows, in_features = weight.shape
    num_blocks = -(-in_features // block_size)
    values = np.zeros((rows, num_blocks, block_size), np.uint8)
    scales, zero_points = (np.empty((rows, num_blocks), np.float32) for _ in range(2))
    for number in range(num_blocks):
        first = number * block_size
        block = weight[:, first : first + block_size]
        scale, zero_point = grids.choose(block)
        scales[:, number], zero_points[:, number] = scale, zero_point
        errors = np.empty_like(block)
        for index in range(block.shape[1]):
            column = first + index
            rounded = grids.round(block[:, index : index + 1], scale, zero_point)[:, 0]
            values[:, number, index] = rounded
            error = block[:, index] - (rounded - zero_point) * scale
            errors[:, index] = error / factor[column, column]
            row = factor[column, column + 1 : first + block.shape[1]]
            block[:, index + 1 :] -= errors[:, index, None] * row
        after = first + block.shape[1]
        weight[:, after:] -= errors @ factor[first:after, after:]
        # A block that is not full ends in weights of zero.
        values[:, number, block.shape[1] :] = zero_point[:, None].astype(np.uint8)
    return values, scales, zero_points
