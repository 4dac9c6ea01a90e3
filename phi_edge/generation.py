"""The decode loops: logits -> tokens -> text, until something ends the completion."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from phi_edge.drafting import DRAFT_TOKENS, DraftingRun
from phi_edge.engine import Logits, Run, check_cancelled
from phi_edge.sampling import Constraint, Sampler
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


class Generation:
    """One completion, being generated: logits in, tokens and text out.

    Attributes:
        token_ids: Its tokens so far.
        is_finished: Nothing follows. Set it to have no more tokens.
    """

    def __init__(
        self,
        num_prompt_tokens: int,
        sampler: Sampler,
        detokenizer: Detokenizer,
        limits: Limits,
        num_logprobs: int | None = None,
    ) -> None:
        """Start a completion; see `generate_events`."""
        self.token_ids: list[int] = []
        self.is_finished = False
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._eos_token_ids = limits.eos_token_ids
        # The last token is chosen, and never appended.
        most = limits.context_length - num_prompt_tokens + 1
        self._max_tokens = most if limits.max_tokens is None else min(limits.max_tokens, most)
        self._num_logprobs = num_logprobs

    @property
    def constraint(self) -> Constraint | None:
        """What the sampler is bound to."""
        return self._sampler.constraint

    @property
    def num_left(self) -> int:
        """Most tokens that may follow."""
        return self._max_tokens - len(self.token_ids)

    def add(self, logits: Logits) -> GenerationEvent:
        """Choose the next token from its logits, float32 [vocab_size]."""
        token_id = self._sampler(logits)
        self.token_ids.append(token_id)
        logprobs = None
        if self._num_logprobs is not None:
            logprobs = _logprobs(logits, token_id, self._num_logprobs)
        reason: FinishReason | None = None
        if token_id in self._eos_token_ids:
            text, reason = self._detokenizer.finish(), "stop"
        else:
            text = self._detokenizer.add(token_id)
            if self.num_left <= 0:
                text, reason = text + self._detokenizer.finish(), "length"
            if self._detokenizer.stopped:
                reason = "stop"
        self.is_finished = reason is not None
        return GenerationEvent(token_id, text, reason, logprobs)


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
    completion = Generation(run.num_tokens, sampler, detokenizer, limits, num_logprobs)
    yield from _decode(run, completion, cancel, draft_tokens)


def generate_choices(
    run: Run,
    completions: Sequence[Generation],
    num_rows: int,
    cancel: threading.Event | None = None,
) -> Iterator[tuple[int, GenerationEvent]]:
    """Decode several completions of one prompt, together as far as the engine can.

    Where a batch ends, which is where the RoPE factors change, each completion goes on alone.

    Args:
        run: The prefilled prompt.
        completions: They have no tokens yet.
        num_rows: Most completions to decode at once.
        cancel: Setting it, from another thread, stops between two tokens.

    Returns:
        Each event with the index of its completion; those of different ones come mixed.

    Raises:
        GenerationCancelled: `cancel` was set.
    """
    num_prompt_tokens = run.num_tokens
    for start in range(0, len(completions), num_rows):
        group = range(start, min(start + num_rows, len(completions)))
        run.rewind(num_prompt_tokens)
        if len(group) > 1:
            yield from _decode_batch(run, completions, group, cancel)
        for index in group:
            completion = completions[index]
            if completion.is_finished:
                continue
            run.rewind(num_prompt_tokens)
            _replay(run, completion.token_ids, cancel)
            for event in _decode(run, completion, cancel):
                yield index, event


def _decode(
    run: Run,
    completion: Generation,
    cancel: threading.Event | None,
    draft_tokens: int = DRAFT_TOKENS,
) -> Iterator[GenerationEvent]:
    """Go on with one completion, whose tokens the run has."""
    ahead = DraftingRun(run, completion.num_left, draft_tokens, completion.constraint)
    logits = ahead.logits
    try:
        while True:
            event = completion.add(logits)
            yield event
            if completion.is_finished:
                return
            check_cancelled(cancel)
            logits = ahead.append(event.token_id)
    finally:
        ahead.close()


def _decode_batch(
    run: Run,
    completions: Sequence[Generation],
    group: Sequence[int],
    cancel: threading.Event | None,
) -> Iterator[tuple[int, GenerationEvent]]:
    """Begin a group of completions, and go on until all are finished or the batch ends."""
    batch = run.fork(len(group))
    if batch is None:
        return
    logits = np.broadcast_to(run.logits, (len(group), run.logits.size))
    while True:
        for index, row in zip(group, logits, strict=True):
            yield index, completions[index].add(row)
        rows = [row for row, index in enumerate(group) if not completions[index].is_finished]
        if not rows or batch.num_tokens == batch.max_tokens:
            return
        check_cancelled(cancel)
        if len(rows) < len(group):
            batch.keep(rows)
            group = [group[row] for row in rows]
        logits = batch.append([completions[index].token_ids[-1] for index in group])


def _replay(run: Run, token_ids: Sequence[int], cancel: threading.Event | None) -> None:
    """Add tokens that are known, as many at a time as the run takes."""
    num_added = 0
    while num_added < len(token_ids):
        check_cancelled(cancel)
        num_added += len(run.verify(token_ids[num_added:]))


def _logprobs(logits: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    exact = logits.astype(np.float64)
    largest = exact.max()
    normaliser = largest + np.log(np.exp(exact - largest).sum())
    order = np.argsort(-logits, kind="stable")[:num_top]
    return TokenLogprobs(
        float(exact[token_id] - normaliser),
        tuple((int(top), float(exact[top] - normaliser)) for top in order),
    )
