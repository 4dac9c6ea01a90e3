"""What the requests to a package may take of the memory that it was given."""

from __future__ import annotations

from phi_edge.package import Manifest
from phi_edge.planning.memory import check_needs, most_tokens, predict_needs
from phi_edge.text.prompt import Prompt

# The completions of one prompt that are decoded at once, and what their caches may take.
_MAX_BATCH_SIZE = 8
_BATCH_BYTES = 4 * 2**30


class MemoryBudget:
    """Bounds on requests, by what `phi_edge.planning.memory` predicts.

    Attributes:
        model: What the package says of the model.
        max_bytes: Most memory that the process may take; None for no limit.
    """

    def __init__(self, manifest: Manifest, max_bytes: int | None = None) -> None:
        self.model = manifest.model
        self.max_bytes = max_bytes
        self._manifest = manifest

    def check(self, prompt: Prompt, max_tokens: int | None) -> None:
        """See `Model.check_memory`."""
        if self.max_bytes is not None:
            num_tokens = prompt.num_tokens + (max_tokens or 1)
            needs = predict_needs(self._manifest, num_tokens, prompt.image_sizes)
            check_needs(needs, self.max_bytes)

    def max_length(self, prompt: Prompt, max_tokens: int | None) -> int:
        """Most tokens that a prompt and a completion of it can have together.

        Args:
            prompt: The prompt.
            max_tokens: Most tokens of the completion; when None, it ends where the context does,
                or the memory.
        """
        longest = self.model.context_length
        if self.max_bytes is not None:
            room = most_tokens(self._manifest, self.max_bytes, prompt.image_sizes)
            longest = min(longest, room)
        if max_tokens is not None:
            longest = min(longest, prompt.num_tokens + max_tokens)
        return longest

    def batch_size(self, prompt: Prompt, max_tokens: int | None, n: int) -> int:
        """How many of `n` completions of a prompt are decoded at once."""
        batch_size = min(n, _MAX_BATCH_SIZE)
        while batch_size > 1 and not self._has_room(prompt, max_tokens, batch_size):
            batch_size -= 1
        return batch_size

    def room(self, prompt: Prompt, max_tokens: int | None, batch_size: int) -> int | None:
        """Bytes that a request leaves to what is kept from earlier ones; None for no limit."""
        if self.max_bytes is None:
            return None
        num_tokens = self._most_cached(prompt, max_tokens, batch_size)
        needs = predict_needs(self._manifest, num_tokens, prompt.image_sizes)
        return max(0, self.max_bytes - needs.peak_bytes)

    def _has_room(self, prompt: Prompt, max_tokens: int | None, batch_size: int) -> bool:
        num_tokens = self._most_cached(prompt, max_tokens, batch_size)
        if num_tokens * self.model.cache_bytes_per_token > _BATCH_BYTES:
            return False
        needs = predict_needs(self._manifest, num_tokens, prompt.image_sizes)
        return self.max_bytes is None or needs.peak_bytes <= self.max_bytes

    def _most_cached(self, prompt: Prompt, max_tokens: int | None, batch_size: int) -> int:
        """Most tokens that are cached at a time, of the completions of a prompt together."""
        longest = self.max_length(prompt, max_tokens)
        if batch_size == 1:
            return longest
        # A batch ends where the RoPE factors change.
        member = min(longest, self.model.rope_limit(prompt.num_tokens))
        return max(longest, prompt.num_tokens + batch_size * member)
