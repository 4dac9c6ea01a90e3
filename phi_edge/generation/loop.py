"""The decode loops: logits -> tokens -> text, until something ends the completion."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Literal

import numpy as np
from typing_extensions import Self

from phi_edge.engine.base import Logits, Run, check_cancelled
from phi_edge.generation.drafting import DraftingRun
from phi_edge.generation.sampling import Sampler, TokenLogprobs, log_probabilities
from phi_edge.text.detokenizer import Detokenizer

FinishReason = Literal["stop", "length"]
Events = Generator["GenerationEvent", None, None]


@dataclasses.dataclass(frozen=True)
class GenerationEvent:
    """One generated token.

    Attributes:
        token_id: The token.
        text: Text that became certain with it; often empty, never half a character.
        finish_reason: None until the last event of a completion; then "stop" (an end token or a
            stop string) or "length" (`max_tokens` or the end of the context).
        logprobs: Log probabilities, where they were asked for.
        index: Which completion of the prompt it belongs to.
    """

    token_id: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    index: int = 0


@dataclasses.dataclass(frozen=True)
class TokenUsage:
    """Tokens of a prompt and its completions, image slots and end tokens included."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclasses.dataclass(frozen=True)
class Answer:
    """A whole completion. As a string, it is its text.

    Attributes:
        text: What the model says.
        finish_reason: See `GenerationEvent`.
        usage: Tokens of the prompt and of the answer.
        logprobs: Those of each token, where they were asked for.
    """

    text: str
    finish_reason: FinishReason
    usage: TokenUsage
    logprobs: tuple[TokenLogprobs, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(eq=False)
class Completion:
    """One completion, being generated: logits in, tokens and text out.

    Attributes:
        index: Its number among those of the prompt.
        sampler: Chooses each token.
        detokenizer: Gives the text, and finds stop strings.
        eos_token_ids: Tokens that end it.
        max_tokens: Most tokens that it may have.
        num_logprobs: Give log probabilities, with this many of the most likely tokens.
        token_ids: Its tokens so far.
        is_finished: Nothing follows. Set it to have no more tokens.
    """

    index: int
    sampler: Sampler
    detokenizer: Detokenizer
    eos_token_ids: Sequence[int]
    max_tokens: int
    num_logprobs: int | None = None
    token_ids: list[int] = dataclasses.field(default_factory=list)
    is_finished: bool = False

    @property
    def num_left(self) -> int:
        """Most tokens that may follow."""
        return self.max_tokens - len(self.token_ids)

    def add(self, logits: Logits) -> GenerationEvent:
        """Choose the next token from its logits, float32 [vocab_size]."""
        token_id = self.sampler(logits)
        self.token_ids.append(token_id)
        logprobs = None
        if self.num_logprobs is not None:
            logprobs = log_probabilities(logits, token_id, self.num_logprobs)
        reason: FinishReason | None = None
        if token_id in self.eos_token_ids:
            text, reason = self.detokenizer.finish(), "stop"
        else:
            text = self.detokenizer.add(token_id)
            if self.num_left <= 0:
                text, reason = text + self.detokenizer.finish(), "length"
            if self.detokenizer.stopped:
                reason = "stop"
        self.is_finished = reason is not None
        return GenerationEvent(token_id, text, reason, logprobs, self.index)


class Generation(Iterator[GenerationEvent]):
    """The events of a prompt's completions, made as they are asked for.

    Those of several completions come mixed. Closing it, or leaving its `with` block, ends the work.
    """

    def __init__(
        self,
        num_prompt_tokens: int,
        completions: Sequence[Completion],
        events: Events,
    ) -> None:
        """Take the completions of a prompt, and the generator that goes on with them."""
        self._num_prompt_tokens = num_prompt_tokens
        self._completions = completions
        self._events = events

    def __next__(self) -> GenerationEvent:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """End all completions: no event follows.

        It is called in the thread that takes the events; another one sets `cancel`.
        """
        self._events.close()

    def finish(self, index: int) -> None:
        """End one completion; the others go on."""
        self._completions[index].is_finished = True

    def answer(self) -> Answer:
        """Generate a single completion to its end.

        Raises:
            ValueError: There are several, or some of its events were taken already.
        """
        if len(self._completions) != 1 or self._completions[0].token_ids:
            raise ValueError(
                "an answer is a single completion from its first token on; `stream` gives several"
            )
        events = list(self)
        if not events:
            raise ValueError("the generation was closed")
        return Answer(
            "".join(event.text for event in events),
            events[-1].finish_reason or "length",
            self.usage,
            tuple(event.logprobs for event in events if event.logprobs),
        )

    @property
    def usage(self) -> TokenUsage:
        """Tokens of the prompt, and of the completions so far."""
        num_generated = sum(len(completion.token_ids) for completion in self._completions)
        return TokenUsage(self._num_prompt_tokens, num_generated)


def decode(
    run: Run,
    completions: Sequence[Completion],
    batch_size: int = 1,
    draft_tokens: int = 0,
    cancel: threading.Event | None = None,
) -> Events:
    """Go on from a prefilled prompt with its completions, together as far as the engine can.

    At most `batch_size` are decoded at once. Where a batch ends, which is where the RoPE factors
    change, each completion goes on alone, with drafts of at most `draft_tokens`; see `drafting`.

    Raises:
        GenerationCancelled: `cancel` was set; it is looked at between two tokens.
    """
    num_prompt_tokens = run.num_tokens
    for start in range(0, len(completions), batch_size):
        group = completions[start : start + batch_size]
        run.rewind(num_prompt_tokens)
        if len(group) > 1:
            yield from _decode_batch(run, group, cancel)
        for completion in group:
            if not completion.is_finished:
                run.rewind(num_prompt_tokens)
                _replay(run, completion.token_ids, cancel)
                yield from _decode_one(run, completion, draft_tokens, cancel)


def _decode_one(
    run: Run, completion: Completion, draft_tokens: int, cancel: threading.Event | None
) -> Events:
    """Go on with one completion, whose tokens the run has."""
    constraint = completion.sampler.constraint
    ahead = DraftingRun(run, completion.num_left, draft_tokens, constraint)
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


def _decode_batch(run: Run, group: Sequence[Completion], cancel: threading.Event | None) -> Events:
    """Begin a group of completions, and go on until all are finished or the batch ends."""
    batch = run.fork(len(group))
    if batch is None:
        return
    logits = np.broadcast_to(run.logits, (len(group), run.logits.size))
    while True:
        for completion, row in zip(group, logits, strict=True):
            yield completion.add(row)
        members = [at for at, completion in enumerate(group) if not completion.is_finished]
        if not members or batch.num_tokens == batch.max_tokens:
            return
        check_cancelled(cancel)
        if len(members) < len(group):
            batch.keep(members)
            group = [group[member] for member in members]
        logits = batch.append([completion.token_ids[-1] for completion in group])


def _replay(run: Run, token_ids: Sequence[int], cancel: threading.Event | None) -> None:
    """Add tokens that are known, as many at a time as the run has room for."""
    num_added = 0
    while num_added < len(token_ids):
        check_cancelled(cancel)
        step = token_ids[num_added : num_added + run.room]
        run.append(step)
        num_added += len(step)
