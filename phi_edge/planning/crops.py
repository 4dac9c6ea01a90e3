"""Fewer crops for images, until a request fits into its time or memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from phi_edge.errors import ImageError
from phi_edge.image.crops import padded_size


def lower_crops(
    sizes: Sequence[tuple[int, int]],
    num_crops: Sequence[int],
    fits: Callable[[list[tuple[int, int]]], bool],
    can_be_fewer: Sequence[bool] | None = None,
) -> list[int]:
    """Lower the most sub crops of images until a request fits, or none can be fewer.

    Args:
        sizes: Width and height of each image in pixels.
        num_crops: Most sub crops of each.
        fits: Tells whether the request fits with images of these padded sizes.
        can_be_fewer: Whether an image's number may be lowered; all may when None.
    """
    free = can_be_fewer or [True] * len(sizes)
    chosen = list(num_crops)
    highest = max((own for own, is_free in zip(num_crops, free, strict=True) if is_free), default=1)
    for limit in range(highest, 0, -1):
        fewer = [
            min(limit, own) if is_free else own
            for own, is_free in zip(num_crops, free, strict=True)
        ]
        try:
            padded = [padded_size(*size, most) for size, most in zip(sizes, fewer, strict=True)]
        except ImageError:
            break  # nothing would be left of a thin image's height
        chosen = fewer
        if fits(padded):
            break
    return chosen
