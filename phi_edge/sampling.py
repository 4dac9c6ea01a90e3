"""Choosing the next token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


class Constraint(Protocol):
    """Says which tokens may come next."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Bool [vocab_size]; at least one is true."""

    def forced(self) -> list[int]:
        """The next tokens, as far as each is the only one allowed after those before it."""

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, from the first, are allowed one after the other."""

    def accept(self, token_id: int) -> None:
        """Go on with the token that was chosen."""


class Sampler:
    """Chooses the tokens of one completion.

    Penalties and biases change the logits first, then the constraint drops tokens, and the token
    is drawn from what is left.

    Attributes:
        constraint: Tokens that may come; all may when None.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        *,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Start a completion.

        Args:
            temperature: 0 takes the most likely token; above, the logits are divided by it.
            top_p: Keep the fewest most likely tokens whose probabilities add up to this.
            top_k: Keep this many of the most likely tokens; None keeps all.
            seed: Makes the draws repeatable.
            presence_penalty: Taken once from the logit of each token that the completion has.
            frequency_penalty: Taken from it as often as the completion has the token.
            logit_bias: Token id -> what is added to its logit.
            constraint: Tokens that may come; all may when None.

        Raises:
            ValueError: A parameter is out of its range.
        """
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0, not {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        self._temperature = temperature
        self._top_p = top_p
        self._top_k = top_k
        self._generator = np.random.default_rng(seed)
        self._presence_penalty = presence_penalty
        self._frequency_penalty = frequency_penalty
        self._logit_bias = dict(logit_bias or {})
        self.constraint = constraint
        self._counts: Counter[int] = Counter()

    def __call__(self, logits: Logits) -> int:
        """Choose the next token from logits, float32 [vocab_size]."""
        adjusted = self._adjust(logits)
        is_greedy = self._temperature == 0 or self._top_k == 1
        token_id = int(adjusted.argmax()) if is_greedy else self._draw(adjusted)
        self._counts[token_id] += 1
        if self.constraint:
            self.constraint.accept(token_id)
        return token_id

    def _adjust(self, logits: Logits) -> Logits:
        adjusted: Logits = logits.copy()
        for token_id, bias in self._logit_bias.items():
            adjusted[token_id] += bias
        # The formula of OpenAI's API reference.
        for token_id, count in self._counts.items():
            adjusted[token_id] -= self._presence_penalty + self._frequency_penalty * count
        if self.constraint:
            adjusted[~self.constraint.allowed()] = -np.inf
        return adjusted

    def _draw(self, logits: Logits) -> int:
        # Most likely first; a stable sort, so that ties are broken alike everywhere.
        order = np.argsort(-logits, kind="stable")[: self._top_k]
        below = logits[order].astype(np.float64) - logits[order[0]]
        with np.errstate(over="ignore"):  # a temperature of nearly 0
            probabilities = np.exp(below / self._temperature)
        probabilities /= probabilities.sum()
        cumulative = probabilities.cumsum()
        if self._top_p < 1:
            kept = int(np.searchsorted(cumulative, self._top_p)) + 1
            cumulative = cumulative[:kept]
        drawn = self._generator.random() * cumulative[-1]
        return int(order[np.searchsorted(cumulative, drawn, side="right")])
