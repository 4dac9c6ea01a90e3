"""Several sequences at a time on ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from phi_edge.engine.base import Batch, Logits
from phi_edge.engine.kv_cache import KeyValueCache
from phi_edge.engine.ort_step import OrtGraphs
from phi_edge.errors import ContextLengthError


class OrtBatch(Batch):
    """Sequences that began as one.

    They are equally long, so nothing is padded. They cannot go on where the RoPE factors change:
    whole sequences are prefilled again there, which is left to runs.
    """

    def __init__(
        self,
        graphs: OrtGraphs,
        cache: KeyValueCache,
        num_tokens: int,
        cancel: threading.Event | None,
    ) -> None:
        """Go on from a cache that holds `num_tokens` of each sequence."""
        self._cancel = cancel
        self._graphs = graphs
        self._cache = cache
        self._num_tokens = num_tokens
        self._no_features = np.empty((0, graphs.model.hidden_size), graphs.model.io_dtype)
        self._bind()

    @property
    @override
    def num_tokens(self) -> int:
        return self._num_tokens

    @property
    @override
    def max_tokens(self) -> int:
        return self._graphs.model.rope_limit(self._num_tokens)

    @override
    def append(self, token_ids: Sequence[int]) -> Logits:
        total = self._num_tokens + 1
        if total > self.max_tokens:
            raise ContextLengthError(total, self.max_tokens)
        if self._cache.reserve(total, num_kept=self._num_tokens):
            self._cache.bind(self._decoder.binding)
        ids = np.array(token_ids, np.int64)[:, None]
        logits = self._graphs.step(
            self._decoder, ids, self._no_features, total, total, self._cancel
        )
        self._num_tokens = total
        self._cache.note_use(total)
        return logits[:, 0]

    @override
    def keep(self, members: Sequence[int]) -> None:
        self._cache.keep(members, self._num_tokens)
        self._bind()

    def _bind(self) -> None:
        """Bind the cache, in a binding for so many sequences."""
        self._decoder = self._graphs.bind_decoder()
        self._cache.bind(self._decoder.binding)
