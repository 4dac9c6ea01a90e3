"""Choosing the next token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Sampler = Callable[[Logits], int]


def make_sampler(
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> Sampler:
    """Build a sampler: logits float32 [vocab_size] -> token id.

    Args:
        temperature: 0 takes the most likely token; above, the logits are divided by it.
        top_p: Keep the fewest most likely tokens whose probabilities add up to this.
        top_k: Keep this many of the most likely tokens; None keeps all.
        seed: Makes the draws repeatable.

    Raises:
        ValueError: A parameter is out of its range.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0, not {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if temperature == 0 or top_k == 1:
        return lambda logits: int(logits.argmax())

    generator = np.random.default_rng(seed)

    def sample(logits: Logits) -> int:
        # Most likely first; a stable sort, so that ties are broken alike everywhere.
        order = np.argsort(-logits, kind="stable")[:top_k]
        scaled = logits[order].astype(np.float64) / temperature
        probabilities = np.exp(scaled - scaled[0])
        probabilities /= probabilities.sum()
        cumulative = probabilities.cumsum()
        if top_p < 1:
            kept = int(np.searchsorted(cumulative, top_p)) + 1
            cumulative = cumulative[:kept]
        draw = generator.random() * cumulative[-1]
        return int(order[np.searchsorted(cumulative, draw, side="right")])

    return sample
