"""LongRoPE tables ("su" scaling).

Source of the formula: `Phi3SuScaledRotaryEmbedding` in Microsoft's published modelling code and
Ding et al., "LongRoPE" (https://arxiv.org/abs/2402.13753).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from .config import Phi3VConfig


def attention_factor(config: Phi3VConfig) -> float:
    """Compute what cosines and sines are multiplied by, in both regimes."""
    scale = config.max_position_embeddings / config.original_max_position_embeddings
    if scale <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scale) / math.log(config.original_max_position_embeddings))


def rope_table(config: Phi3VConfig, kind: Literal["cos", "sin"]) -> npt.NDArray[np.float32]:
    """Compute both regimes in one table, the short one first.

    The first `original_max_position_embeddings` entries are positions with the short factors; the
    `max_position_embeddings` entries after them are positions with the long ones.

    Returns:
        float32 [original + max positions, head_size / 2].
    """
    short = _angles(config, config.short_factor, config.original_max_position_embeddings)
    long = _angles(config, config.long_factor, config.max_position_embeddings)
    angles = np.concatenate([short, long])
    table = np.cos(angles) if kind == "cos" else np.sin(angles)
    scaled: npt.NDArray[np.float32] = table * np.float32(attention_factor(config))
    return scaled


def _angles(
    config: Phi3VConfig, factors: Sequence[float], num_positions: int
) -> npt.NDArray[np.float32]:
    # In float32 throughout, as the published code does it.
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    frequencies = 1 / (np.array(factors, np.float32) * np.float32(config.rope_theta) ** exponents)
    angles: npt.NDArray[np.float32] = np.outer(
        np.arange(num_positions, dtype=np.float32), frequencies.astype(np.float32)
    )
    return angles
