"""Choosing the next token, and what the model thought of it.

A vocabulary is never sorted as a whole to draw one token of it, as that takes ten times as long as
all else: what is likely enough to matter is found first.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import numpy.typing as npt

from phi_edge.generation.constraint import Constraint
from phi_edge.generation.options import GenerationOptions

Logits = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]

# Most likely tokens that are looked at first. Where they are too few, four times as many are.
_HEAD_SIZE = 1024
_HEAD_GROWTH = 4
# Most tokens that are found by way of the largest of each group of so many.
_FEW = 64
_GROUP_SIZE = 64
# Bound on the relative error of a sum of exponentials in float32. An exponent is wrong by three
# roundings of 6e-8 at most, and weighted by probabilities, exponents are ln(32,064) = 10.4 at most.
_FLOAT32_ERROR = 2e-6
# Below it, all tokens but the most likely ones have no weight anyway.
_LEAST_TEMPERATURE = 1e-30


class Sampler:
    """Chooses the tokens of one completion.

    Attributes:
        constraint: Tokens that may come; all may when None.
    """

    def __init__(
        self,
        options: GenerationOptions,
        *,
        index: int = 0,
        prompt_ids: npt.ArrayLike = (),
        constraint: Constraint | None = None,
    ) -> None:
        """Start a completion, the one with this index of the prompt.

        The constraint and the schema of the options are not looked at. Negative ids of the prompt
        are image slots.
        """
        self._options = options
        self.constraint = constraint
        seed = None if options.seed is None else options.seed + index
        if seed is not None and seed < 0:
            seed %= 2**63  # any integer is a seed, and NumPy takes no negative one
        self._generator = np.random.default_rng(seed)
        prompt = np.asarray(() if options.repetition_penalty == 1 else prompt_ids, np.int64)
        self._prompt_ids = np.unique(prompt[prompt >= 0])
        biases = options.logit_bias or {}
        self._bias_ids = np.array(list(biases), np.int64)
        self._biases = np.array(list(biases.values()), np.float32)
        self._counts: Counter[int] = Counter()

    def __call__(self, logits: Logits) -> int:
        """Choose the next token from logits, float32 [vocab_size]."""
        options = self._options
        adjusted = self._adjust(logits)
        if options.temperature == 0 or options.top_k == 1:
            token_id = int(adjusted.argmax())
        else:
            token_id = draw(adjusted, self._generator.random(), options)
        self._counts[token_id] += 1
        if self.constraint is not None:
            self.constraint.accept(token_id)
        return token_id

    def _adjust(self, logits: Logits) -> Logits:
        """Make what tokens are chosen by; the logits themselves stay as they are."""
        options = self._options
        has_penalties = options.presence_penalty or options.frequency_penalty
        is_changed = self._biases.size or options.repetition_penalty != 1 or has_penalties
        if not is_changed and self.constraint is None:
            return logits
        adjusted: Logits = logits.copy()
        if options.repetition_penalty != 1:
            seen = np.union1d(self._prompt_ids, self._completion_ids())
            own, penalty = adjusted[seen], options.repetition_penalty
            adjusted[seen] = np.where(own > 0, own / penalty, own * penalty)
        adjusted[self._bias_ids] += self._biases
        if has_penalties:
            counts = np.fromiter(self._counts.values(), np.float64, len(self._counts))
            penalties = options.presence_penalty + options.frequency_penalty * counts
            adjusted[self._completion_ids()] -= penalties.astype(np.float32)
        if self.constraint is not None:
            adjusted[~self.constraint.allowed()] = -np.inf
        return adjusted

    def _completion_ids(self) -> npt.NDArray[np.int64]:
        """Give each token that the completion has, once."""
        return np.fromiter(self._counts, np.int64, len(self._counts))


def draw(logits: Logits, number: float, options: GenerationOptions) -> int:
    """Draw a token as `temperature`, `top_k`, `top_p` and `min_p` say.

    Tokens are thought of as sorted, the most likely first and equal ones by their ids, and the
    number falls on one of them. Only as many are sorted as are needed to tell which.

    Args:
        logits: float32 [vocab_size].
        number: From the uniform distribution on [0, 1).
        options: The temperature is above 0.
    """
    size = min(options.top_k or _HEAD_SIZE, logits.size)
    totals: tuple[float, ...] = () if options.top_k else _bound_total(logits, options.temperature)
    place = None
    while place is None:
        head = _largest(logits, size)
        weights = _weights(head, head[0], options.temperature)
        is_whole = bool(options.top_k) or size == logits.size
        if is_whole:
            totals = (weights.sum(),)
        places = {_find(weights, total, number, options, is_whole=is_whole) for total in totals}
        size = min(_HEAD_GROWTH * size, logits.size)
        if len(places) == 1:
            place = places.pop()
        else:  # so near an edge that every bit counts
            size = logits.size
    equal = logits == head[place]
    num_equal_before = place - int(np.searchsorted(-head, -head[place]))
    return int(np.flatnonzero(equal)[num_equal_before] if num_equal_before else equal.argmax())


def _largest(logits: Logits, count: int) -> Logits:
    """Find the largest logits, in descending order."""
    if count <= _FEW:
        largest = logits[logits >= _least_of(logits, count)]
    else:
        start = logits.size - count
        largest = np.partition(logits, start)[start:]
    largest.sort()
    return largest[::-1][:count]


def _least_of(logits: Logits, count: int) -> np.float32:
    """Find a number that at least `count` logits reach, and, where these are few, not many more.

    Each of so many groups has a logit that reaches it. It takes a third of a partition's time.
    """
    rows = min(_GROUP_SIZE, logits.size // count)
    columns = logits.size // rows
    largest = logits[: rows * columns].reshape(rows, columns).max(axis=0)
    least: np.float32 = np.partition(largest, columns - count)[columns - count]
    return least


def _bound_total(logits: Logits, temperature: float) -> tuple[float, float]:
    """Bound what the weights of all tokens come to, from below and from above.

    It is computed in float32, which takes half the time and is nearly always enough to tell.
    """
    with np.errstate(over="ignore"):
        exponents = (logits - logits.max()) / np.float32(max(temperature, _LEAST_TEMPERATURE))
    total = float(np.exp(exponents, out=exponents).sum(dtype=np.float64))
    return total * (1 - _FLOAT32_ERROR), total * (1 + _FLOAT32_ERROR)


def _find(
    weights: Weights, total: float, number: float, options: GenerationOptions, *, is_whole: bool
) -> int | None:
    """Find on which of the most likely tokens a number falls; None if these are too few to tell.

    The number is from [0, 1), as in `draw`. The weights are in descending order. Those of all
    tokens come to `total`, and `is_whole` says that there are no others.
    """
    cumulative = (weights / total).cumsum()
    kept = weights.size
    if options.top_p < 1:
        kept = min(kept, int(np.searchsorted(cumulative, options.top_p)) + 1)
    if options.min_p > 0:
        kept = min(kept, int(np.searchsorted(-weights, -options.min_p, side="right")))
    end = cumulative[kept - 1]
    if kept == weights.size and not is_whole:
        if options.top_p < 1 or options.min_p > 0 or number >= end:
            return None
        end = np.float64(1)
    drawn = min(number * end, np.nextafter(end, 0))
    return int(np.searchsorted(cumulative[:kept], drawn, side="right"))


def _weights(logits: Logits, largest: np.float32, temperature: float) -> Weights:
    """Compute probabilities at a temperature, as parts of the largest one."""
    below = logits.astype(np.float64) - largest
    with np.errstate(over="ignore"):  # a temperature of nearly 0
        return np.exp(below / temperature)


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities of one position, of the model's own distribution.

    They are taken before temperature, penalties, biases and constraints.

    Attributes:
        logprob: That of the token that was chosen.
        top: The most likely tokens with theirs, most likely first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def log_probabilities(logits: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    """Compute log probabilities of a token and of the most likely ones, right to 1e-6.

    The logits are float32 [vocab_size], as the model gives them.
    """
    largest = logits.max()
    # In float32, as the logits themselves are no more precise.
    below = logits - largest
    normaliser = float(largest) + math.log(np.exp(below, out=below).sum())
    tokens = (token_id, *_most_likely(logits, num_top))
    logprob, *top = [float(logits[token]) - normaliser for token in tokens]
    return TokenLogprobs(logprob, tuple(zip(tokens[1:], top, strict=True)))


def _most_likely(logits: Logits, count: int) -> list[int]:
    """Find the most likely tokens, equal ones by their ids."""
    count = min(count, logits.size)
    if count == 0:
        return []
    found = np.flatnonzero(logits >= _least_of(logits, count))
    order = np.argsort(-logits[found], kind="stable")[:count]
    token_ids: list[int] = found[order].tolist()
    return token_ids
