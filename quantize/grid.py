"""Grids of blocks: the values that the weights of a block can take, and which each takes.

A grid is a scale and a zero point; its values are `(q - zero_point) * scale` for the unsigned
integers `q` of some bits.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Ranges that a search tries, as parts of the one that a block's weights span. On normally
# distributed weights five times as many take away less than a hundredth more of the squared error.
_SPANS = np.linspace(1.05, 0.6, 10, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Grids:
    """Chooses grids and rounds to them.

    Attributes:
        bits: Of the integers.
        symmetric: The zero point is fixed in the middle.
        scale_dtype: Type that scales are rounded to.
        search: Take the grid with the least squared error among several, not the one that spans
            the weights.
    """

    bits: int
    symmetric: bool
    scale_dtype: str
    search: bool

    @property
    def top(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    def choose(self, blocks: Floats) -> tuple[Floats, Floats]:
        """Choose scales and zero points, float32 [...], for blocks [..., block_size].

        Raises:
            ValueError: Weights are not finite, or too large for the type of the scales.
        """
        # The range has to hold zero, so that a weight of zero stays zero.
        low = np.minimum(blocks.min(axis=-1), 0)
        high = np.maximum(blocks.max(axis=-1), 0)
        # What is not finite is refused here, and left out of a search.
        with np.errstate(over="ignore", invalid="ignore"):
            scales, zero_points = self._spanning(low, high)
            if not np.isfinite(scales).all():
                raise ValueError(
                    f"weights are infinite, undefined or too large for {self.scale_dtype}"
                )
            if not self.search:
                return scales, zero_points
            least = np.full(scales.shape, np.inf, np.float32)
            for span in _SPANS:
                tried, zeros = self._spanning(low * span, high * span)
                tried, error = self._fit(blocks, tried, zeros)
                better = error < least
                for best, found in ((least, error), (scales, tried), (zero_points, zeros)):
                    np.copyto(best, found, where=better)
        return scales, zero_points

    def round(self, blocks: Floats, scales: Floats, zero_points: Floats) -> Floats:
        """Round blocks [..., block_size] to integers, as float32."""
        values = blocks / scales[..., None]
        np.rint(values, out=values)
        values += zero_points[..., None]
        return np.clip(values, 0, self.top, out=values)

    def _spanning(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """Make the grids from `low` to `high`."""
        middle = 2 ** (self.bits - 1)
        if self.symmetric:
            scales = self._as_stored(np.maximum(-low, high) / np.float32(middle - 1))
            return scales, np.full_like(scales, middle)
        scales = self._as_stored((high - low) / np.float32(self.top))
        return scales, np.rint(-low / scales)

    def _fit(self, blocks: Floats, scales: Floats, zero_points: Floats) -> tuple[Floats, Floats]:
        """Fit the scales to the integers of these grids; give the squared errors too."""
        values = self.round(blocks, scales, zero_points)
        values -= zero_points[..., None]
        squares = np.einsum("...i,...i", values, values)
        products = np.einsum("...i,...i", values, blocks)
        fits = (squares > 0) & (products > 0)
        fitted = self._as_stored(np.divide(products, squares, out=scales.copy(), where=fits))
        values *= fitted[..., None]
        values -= blocks
        error: Floats = np.einsum("...i,...i", values, values)
        return fitted, error

    def _as_stored(self, scales: Floats) -> Floats:
        """Round scales to what the graph can hold; 1 for a block of zeros."""
        stored = scales.astype(self.scale_dtype).astype(np.float32)
        stored[stored == 0] = 1
        return stored
