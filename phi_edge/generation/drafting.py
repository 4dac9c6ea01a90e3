"""Several tokens a decode step, where a text repeats itself or a constraint leaves no choice.

Where a schema leaves one token at a time, as in the names and the punctuation of JSON, these are a
draft. Else it is prompt lookup: what followed the last tokens when they came before, in the prompt
or the completion, is a draft of what follows now, as far as the schema allows it. (Saxena, "Prompt
Lookup Decoding", 2023, https://github.com/apoorvumang/prompt-lookup-decoding) The decoder checks a
whole draft in one step, which on a CPU costs less than as many steps, since its weights are read
once.

Nothing is ever taken from a draft: each token is chosen from the model's logits as without one,
and where it is not the draft's, the rest of the draft is dropped. For a draft that is certain of
its token this is what speculative sampling does (Leviathan et al., 2023,
https://arxiv.org/abs/2211.17192), so distributions stay as they are.

Kernels may round differently for several tokens than for one. On phi-edge-tiny the log
probabilities differ by less than 1e-5 in float32, and by up to 0.001 in int4, whose kernels round
activations to 8 bits: only nearer ties than that can fall to the other side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from phi_edge.engine.base import Logits, Run
from phi_edge.generation.constraint import Constraint

DRAFT_TOKENS = 16

# A match is looked for with so many of the last tokens, the longer first.
_MATCH_SIZES = (3, 2)
_LONGEST_MATCH = 9
# Least length of a match, and how often its next token is right before anything is known of a
# text: set by hand, near where prose, code and JSON in Phi-3.5-vision's tokens ended up.
_FIRST_RATES = {2: 0.15, 3: 0.35, 5: 0.6, _LONGEST_MATCH: 0.8}
_RATE_STEP = 1 / 8
# What a drafted token costs, in decode steps: measured at full size, a step with 4 of them takes
# 1.9 to 2.4 times as long as one without, a step with 8 of them 2.9 to 3.6 times.
_TOKEN_COST = 0.3


class PromptLookup:
    """Drafts from a text that grows, and learns how far its drafts can be trusted.

    How often a match is right is counted at every token, whether there was a draft or not. So it
    costs nothing to find out that a text does not repeat itself.
    """

    def __init__(self, token_ids: Sequence[int], max_length: int = DRAFT_TOKENS) -> None:
        """Start with a prompt; negative ids are image slots, which are never drafted."""
        self._max_length = max_length
        self._length = max_length
        self._rates = dict(_FIRST_RATES)
        self._ids: list[int] = []
        # The last tokens -> the latest place where something followed them.
        self._followers: dict[tuple[int, ...], int] = {}
        for token_id in token_ids:
            self._index(token_id)
        self._place, self._kind = self._match()

    def add(self, token_id: int) -> None:
        """Go on with a token of the completion."""
        if self._place is not None:
            is_right = self._ids[self._place] == token_id
            self._rates[self._kind] += _RATE_STEP * (is_right - self._rates[self._kind])
        self._index(token_id)
        self._place, self._kind = self._match()

    def draft(self) -> list[int]:
        """Guess the next tokens, as far as they are worth checking; often none."""
        if self._place is None:
            return []
        rate = self._rates[self._kind]
        if rate <= _TOKEN_COST:
            return []
        # The last token that is right more often than it costs.
        worth = math.log(_TOKEN_COST) / math.log(rate) if rate < 1 else math.inf
        end = self._place + int(min(worth, self._length))
        return list(
            itertools.takewhile(lambda token_id: token_id >= 0, self._ids[self._place : end])
        )

    def note(self, num_drafted: int, num_right: int) -> None:
        """Tell how a draft went, so that the next one is as long as repeats are in this text."""
        if num_right == num_drafted:
            self._length = min(self._max_length, 2 * self._length)
        else:
            self._length = min(self._max_length, max(2, num_right + 1))

    def _index(self, token_id: int) -> None:
        for size in _MATCH_SIZES:
            if len(self._ids) >= size and token_id >= 0:
                self._followers[tuple(self._ids[-size:])] = len(self._ids)
        self._ids.append(token_id)

    def _match(self) -> tuple[int | None, int]:
        """Find where the text went on from what are now its last tokens, and the kind of match."""
        ids = self._ids
        for size in _MATCH_SIZES:
            place = self._followers.get(tuple(ids[-size:]))
            if place is None:
                continue
            longest = min(_LONGEST_MATCH, place)
            while size < longest and ids[place - size - 1] == ids[-size - 1]:
                size += 1  # noqa: PLW2901 - the match found, made longer
            return place, max(kind for kind in self._rates if kind <= size)
        return None, 0


class DraftingRun:
    """A run that is a few tokens ahead of its completion, where it could guess them.

    Attributes:
        num_tokens: Tokens of the prompt and the completion, without what was guessed.
    """

    def __init__(
        self,
        run: Run,
        max_tokens: int,
        draft_tokens: int,
        constraint: Constraint | None = None,
    ) -> None:
        """Go on from a run, which must not be used until `close`.

        The completion is bound to the constraint, which has accepted each token that is appended.
        """
        self.num_tokens = run.num_tokens
        # The last token is chosen, and never appended.
        self._most_tokens = run.num_tokens + max_tokens - 1
        self._run = run
        self._lookup = PromptLookup(run.input_ids.tolist(), draft_tokens)
        self._draft_tokens = draft_tokens
        self._constraint = constraint
        self._draft: list[int] = []
        self._is_lookup = False  # where the draft is from
        self._logits: Logits = run.logits[None]
        self._num_right = 0

    @property
    def logits(self) -> Logits:
        """float32 [vocab_size]: scores of the token after the last one."""
        row: Logits = self._logits[self._num_right]
        return row

    def append(self, token_id: int) -> Logits:
        """Add one token and give the new logits, float32 [vocab_size]."""
        self._lookup.add(token_id)
        is_right = self._num_right < len(self._draft) and self._draft[self._num_right] == token_id
        if is_right:
            self._num_right += 1
        else:
            self._step(token_id)
        self.num_tokens += 1
        return self.logits

    def _step(self, token_id: int) -> None:
        self.close()
        room = min(self._most_tokens - self.num_tokens, self._run.room) - 1
        self._draft = self._make_draft()[: max(0, min(room, self._draft_tokens))]
        self._logits = self._run.append([token_id, *self._draft])

    def _make_draft(self) -> list[int]:
        forced = self._constraint.forced() if self._constraint else []
        self._is_lookup = not forced
        if forced:
            return forced
        draft = self._lookup.draft()
        if draft and self._constraint:
            draft = draft[: self._constraint.count_allowed(draft)]
        return draft

    def close(self) -> None:
        """Take back from the run what was guessed wrong."""
        if self._draft:
            if self._is_lookup:
                self._lookup.note(len(self._draft), self._num_right)
            self._run.rewind(self.num_tokens)
        self._draft, self._num_right = [], 0
