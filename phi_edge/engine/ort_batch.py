"""Several sequences at a time on ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from phi_edge.engine.base import Logits
from phi_edge.engine.kv_cache import KeyValueCache
from phi_edge.errors import ContextLengthError

if TYPE_CHECKING:
    from phi_edge.engine.ort import OrtEngine


class OrtBatch:
    """Sequences that began as one `OrtRun`; a `phi_edge.engine.base.Batch`.

    They are equally long, so nothing is padded. They cannot go on where the RoPE factors change:
    whole sequences are prefilled again there, which is left to `OrtRun`.
    """

    def __init__(
        self,
        engine: OrtEngine,
        cache: KeyValueCache,
        num_tokens: int,
        cancel: threading.Event | None,
    ) -> None:
        """Go on from a cache that holds `num_tokens` of each sequence."""
        self._cancel = cancel
        self._engine = engine
        self._cache = cache
        self._num_tokens = num_tokens
        self._no_features = np.empty((0, engine.model.hidden_size), engine.model.io_dtype)
        self._bind()

    @property
    def num_tokens(self) -> int:
        """See `Batch.num_tokens`."""
        return self._num_tokens

    @property
    def max_tokens(self) -> int:
        """See `Batch.max_tokens`."""
        return self._engine.model.rope_limit(self._num_tokens)

    def append(self, token_ids: Sequence[int]) -> Logits:
        """See `Batch.append`."""
        total = self._num_tokens + 1
        if total > self.max_tokens:
            raise ContextLengthError(total, self.max_tokens)
        if self._cache.reserve(total, num_kept=self._num_tokens):
            self._cache.bind(self._decoder.binding)
        ids = np.array(token_ids, np.int64)[:, None]
        self._engine.step(self._decoder, ids, self._no_features, total, total, self._cancel)
        self._num_tokens = total
        self._cache.note_use(total)
        logits: Logits = self._logits.last[:, 0].copy()
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """See `Batch.keep`."""
        self._cache.keep(rows, self._num_tokens)
        self._bind()

    def _bind(self) -> None:
        """Bind the cache and the logits, in a binding for so many rows."""
        self._decoder = self._engine.bind_decoder()
        self._cache.bind(self._decoder.binding)
        self._logits = self._engine.bind_logits([self._decoder], self._cache.num_rows)
