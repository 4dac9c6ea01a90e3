"""A sequence on ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from phi_edge.engine.base import (
    Features,
    KeyValues,
    Logits,
    Run,
    check_cancelled,
)
from phi_edge.engine.ort_batch import OrtBatch
from phi_edge.engine.ort_step import OrtGraphs
from phi_edge.errors import GenerationCancelled

logger = logging.getLogger(__name__)

# From so many tokens on, the prompt graph is faster than the decoder: it has twice the bytes to
# read, and needs less than two thirds of the time for each token.
_MIN_PROMPT_TOKENS = 16


class OrtRun(Run):
    """One sequence.

    Other RoPE factors give other keys. So a sequence that passes its `ModelConfig.rope_limit`, or
    comes back, is prefilled again as a whole: it keeps its image features for that.
    """

    def __init__(self, graphs: OrtGraphs) -> None:
        """Begin a sequence that has no tokens yet."""
        super().__init__(graphs.model)
        self._graphs = graphs
        self._num_cached = 0
        # Of the sequence whose keys are cached.
        self._rope_limit = self._model.rope_limit(0)
        self._logits: Logits | None = None  # of the last token
        self._cache = graphs.new_cache()
        self._decoder = graphs.bind_decoder()
        self._prompt_graph = graphs.bind_prompt_graph()
        self._bound = [graph for graph in (self._decoder, self._prompt_graph) if graph]

    @property
    @override
    def num_cached(self) -> int:
        has_same_factors = self._model.rope_limit(len(self._ids)) == self._rope_limit
        return self._num_cached if has_same_factors else 0

    @property
    @override
    def num_bytes(self) -> int:
        return self._cache.num_bytes + self._image_features.nbytes

    @property
    @override
    def logits(self) -> Logits:
        if self._logits is None:  # after a rewind, for example
            self._run_pending(0)
        return np.array(self._logits)

    @property
    @override
    def room(self) -> int:
        num_tokens, limit = len(self._ids), self._model.rope_limit(len(self._ids) + 1)
        if self._num_cached < num_tokens or self._rope_limit != limit:
            limit = min(limit, num_tokens + 1)  # all of it is run again
        return min(limit - num_tokens, self._graphs.chunk_size)

    @override
    def _forget(self) -> None:
        self._logits = None
        self._num_cached = min(self._num_cached, len(self._ids))

    @override
    def fork(self, batch_size: int) -> OrtBatch:
        if self.num_cached < len(self._ids):
            self._run_pending(0)
        num_tokens = len(self._ids)
        cache = self._graphs.new_cache(batch_size)
        cache.import_kv(self._cache.export_kv(num_tokens), num_tokens)
        return OrtBatch(self._graphs, cache, num_tokens, self._cancel)

    @override
    def export_kv(self, num_tokens: int) -> Iterator[KeyValues]:
        if num_tokens > self.num_cached:
            raise ValueError(f"{self.num_cached} tokens are cached, not {num_tokens}")
        return self._cache.export_kv(num_tokens)

    def import_kv(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        key_values: Iterable[KeyValues],
        rope_limit: int,
    ) -> None:
        """Begin with tokens whose keys and values are known; see `Engine.restore`."""
        self._ids = input_ids.tolist()
        self._image_features = image_features.astype(self._model.io_dtype)
        self._cache.import_kv(key_values, len(self._ids))
        self._bind_cache()
        self._num_cached, self._rope_limit = len(self._ids), rope_limit

    @override
    def _run_pending(self, num_earlier: int) -> Logits:
        self._logits = None
        rope_limit = self._model.rope_limit(len(self._ids))
        if rope_limit != self._rope_limit:
            if self._num_cached:
                logger.info(
                    "the sequence has %d tokens now: prefilling it with the RoPE factors of "
                    "sequences of up to %d",
                    len(self._ids),
                    rope_limit,
                )
            self._num_cached, self._rope_limit = 0, rope_limit
        # The last token is run even if its keys are there: it gives the logits.
        num_kept = min(self._num_cached, len(self._ids) - 1)
        self._num_cached = 0  # until the cache is there
        if self._cache.reserve(len(self._ids), num_kept):
            self._bind_cache()
        self._num_cached = num_kept
        # Those that are still to come.
        features = self._image_features
        features = features[len(features) - self._num_slots(self._num_cached) :]
        while self._num_cached < len(self._ids):
            check_cancelled(self._cancel)
            stop = self._graphs.chunk_end(self._num_cached, len(self._ids))
            logits, features = self._run_chunk(self._num_cached, stop, features, num_earlier)
            self._cache.note_use(self._num_cached)
        self._logits = logits[-1]
        return np.array(logits)

    def _bind_cache(self) -> None:
        for graph in self._bound:
            self._cache.bind(graph.binding)

    def _run_chunk(
        self,
        start: int,
        stop: int,
        features: npt.NDArray[np.floating[Any]],
        num_earlier: int,
    ) -> tuple[Logits, npt.NDArray[np.floating[Any]]]:
        """Extend the cache, which holds `start` tokens, by the next ones up to `stop`.

        The features are those of the image slots from `start` on. What is left for later chunks is
        given back, behind the logits of the last tokens.
        """
        ids = np.array([self._ids[start:stop]], np.int64)
        num_slots = int((ids < 0).sum())
        total = start + ids.size
        # Guesses are verified by the very weights that decode.
        is_prompt = ids.size >= _MIN_PROMPT_TOKENS and not num_earlier
        graph = (is_prompt and self._prompt_graph) or self._decoder
        try:
            logits = self._graphs.step(
                graph,
                ids,
                features[:num_slots],
                total,
                len(self._ids),
                self._cancel,
                num_earlier,
            )
        except GenerationCancelled:
            raise  # the chunks before are whole
        except Exception:
            self._num_cached = 0  # nobody knows what is in the cache now
            raise
        self._num_cached = total
        return logits[0], features[num_slots:]
