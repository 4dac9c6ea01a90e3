"""What the requests to a package may take of the memory that it was given."""

from __future__ import annotations

from phi_edge.generation import Limits
from phi_edge.needs import check_needs, most_tokens, predict_needs
from phi_edge.package import Manifest
from phi_edge.prompt import Prompt

# The choices of one prompt that are decoded at once, and what their caches may take.
_MAX_ROWS = 8
_BATCH_BYTES = 4 * 2**30


class MemoryBudget:
    """Bounds on requests, by what `phi_edge.needs` predicts.

    Attributes:
        max_bytes: Most memory that the process may take; None for no limit.
    """

    def __init__(self, manifest: Manifest, max_bytes: int | None = None) -> None:
        self._manifest = manifest
        self.max_bytes = max_bytes

    def check(self, prompt: Prompt, max_tokens: int | None) -> None:
        """See `Model.check_memory`."""
        if self.max_bytes is not None:
            num_tokens = prompt.num_tokens + (max_tokens or 1)
            needs = predict_needs(self._manifest, num_tokens, prompt.image_sizes)
            check_needs(needs, self.max_bytes)

    def limits(self, prompt: Prompt, max_tokens: int | None) -> Limits:
        """See `Model.limits`."""
        model = self._manifest.model
        context_length = model.context_length
        if self.max_bytes is not None:
            most = most_tokens(self._manifest, self.max_bytes, prompt.image_sizes)
            context_length = min(context_length, most)
        return Limits(model.eos_token_ids, context_length, max_tokens)

    def count_rows(self, prompt: Prompt, max_tokens: int | None, num_choices: int) -> int:
        """See `Model.count_rows`."""
        num_rows = min(num_choices, _MAX_ROWS)
        while num_rows > 1 and not self._has_room(prompt, max_tokens, num_rows):
            num_rows -= 1
        return num_rows

    def room(self, prompt: Prompt, max_tokens: int | None, num_rows: int) -> int | None:
        """Bytes that a request leaves to what is kept from earlier ones; None for no limit."""
        if self.max_bytes is None:
            return None
        num_tokens = self._most_cached(prompt, max_tokens, num_rows)
        needs = predict_needs(self._manifest, num_tokens, prompt.image_sizes)
        return max(0, self.max_bytes - needs.peak_bytes)

    def _has_room(self, prompt: Prompt, max_tokens: int | None, num_rows: int) -> bool:
        num_tokens = self._most_cached(prompt, max_tokens, num_rows)
        if num_tokens * self._manifest.model.cache_bytes_per_token > _BATCH_BYTES:
            return False
        needs = predict_needs(self._manifest, num_tokens, prompt.image_sizes)
        return self.max_bytes is None or needs.peak_bytes <= self.max_bytes

    def _most_cached(self, prompt: Prompt, max_tokens: int | None, num_rows: int) -> int:
        """Most tokens that are cached at a time, of the completions of a prompt together."""
        longest = self.limits(prompt, max_tokens).context_length
        if max_tokens is not None:
            longest = min(longest, prompt.num_tokens + max_tokens)
        if num_rows == 1:
            return longest
        # A batch of short sequences ends where they become long.
        end = self._manifest.model.original_context_length
        row = min(longest, end) if prompt.num_tokens <= end else longest
        return max(longest, prompt.num_tokens + num_rows * row)
