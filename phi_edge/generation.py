"""The decode loop: logits -> tokens -> text, until something ends the completion."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from typing import Literal

import numpy as np

from phi_edge.drafting import DRAFT_TOKENS, DraftingRun
from phi_edge.engine import Logits, Run, check_cancelled
from phi_edge.sampling import Sampler
from phi_edge.text import Detokenizer

FinishReason = Literal["stop", "length"]


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


@dataclasses.dataclass(frozen=True)
class GenerationEvent:
    """One generated token.

    Attributes:
        token_id: The token.
        text: Text that became certain with it; often empty, never half a character.
        finish_reason: None until the last event; then "stop" (an end token or a stop string)
            or "length" (`max_tokens` or the end of the context).
        logprobs: Log probabilities, where they were asked for.
    """

    token_id: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """What ends a completion, besides stop strings.

    Attributes:
        eos_token_ids: Tokens that end it.
        context_length: Most tokens of the sequence.
        max_tokens: Most tokens of the completion; None for as many as the context holds.
    """

    eos_token_ids: tuple[int, ...]
    context_length: int
    max_tokens: int | None = None


def generate_events(
    run: Run,
    sampler: Sampler,
    detokenizer: Detokenizer,
    limits: Limits,
    num_logprobs: int | None = None,
    cancel: threading.Event | None = None,
    draft_tokens: int = DRAFT_TOKENS,
) -> Iterator[GenerationEvent]:
    """Decode from a prefilled run on.

    Args:
        run: Where to go on from; it grows by the completion's tokens.
        sampler: Chooses each token.
        detokenizer: Gives the text, and finds stop strings.
        limits: What else ends the completion.
        num_logprobs: Give log probabilities, with this many of the most likely tokens.
        cancel: Setting it, from another thread, stops between two tokens.
        draft_tokens: Most tokens to guess where the text repeats itself; see `drafting`.

    Raises:
        GenerationCancelled: `cancel` was set.
    """
    ahead = DraftingRun(run, limits.max_tokens or limits.context_length, draft_tokens)
    try:
        yield from _events(ahead, sampler, detokenizer, limits, num_logprobs, cancel)
    finally:
        ahead.close()


def _events(
    run: DraftingRun,
    sampler: Sampler,
    detokenizer: Detokenizer,
    limits: Limits,
    num_logprobs: int | None,
    cancel: threading.Event | None,
) -> Iterator[GenerationEvent]:
    logits = run.logits
    for num_completion_tokens in itertools.count(1):
        token_id = sampler(logits)
        logprobs = None if num_logprobs is None else _logprobs(logits, token_id, num_logprobs)
        if token_id in limits.eos_token_ids:
            yield GenerationEvent(token_id, detokenizer.finish(), "stop", logprobs)
            return
        text = detokenizer.add(token_id)
        is_last = (
            num_completion_tokens == limits.max_tokens or run.num_tokens == limits.context_length
        )
        if is_last:
            text += detokenizer.finish()
        if detokenizer.stopped or is_last:
            reason: FinishReason = "stop" if detokenizer.stopped else "length"
            yield GenerationEvent(token_id, text, reason, logprobs)
            return
        yield GenerationEvent(token_id, text, None, logprobs)
        check_cancelled(cancel)
        logits = run.append(token_id)


def _logprobs(logits: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    exact = logits.astype(np.float64)
    largest = exact.max()
    normaliser = largest + np.log(np.exp(exact - largest).sum())
    order = np.argsort(-logits, kind="stable")[:num_top]
    return TokenLogprobs(
        float(exact[token_id] - normaliser),
        tuple((int(top), float(exact[top] - normaliser)) for top in order),
    )
