"""The engine on ONNX Runtime."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from phi_edge import package
from phi_edge.engine.base import (
    Features,
    Lent,
    Logits,
    Rows,
    check_cancelled,
    check_rewind,
    check_step,
    check_tokens,
)
from phi_edge.engine.kv_cache import KeyValueCache
from phi_edge.engine.ort_batch import OrtBatch
from phi_edge.engine.providers import find_provider
from phi_edge.engine.session import (
    encode_image,
    import_onnxruntime,
    open_session,
    run_options,
)
from phi_edge.errors import GenerationCancelled
from phi_edge.image.crops import ImageCrops
from phi_edge.package import DECODER, EMBEDDING, GRAPH_FILES, PREFILL, VISION, Manifest

logger = logging.getLogger(__name__)

# From so many tokens on, the weights of a prefill graph are faster than the decoder's: it has twice
# the bytes to read, and needs less than two thirds of the time for each token.
_MIN_PREFILL_TOKENS = 16


class BoundGraph(NamedTuple):
    """A session of the decoder, or of the prefill graph, and its binding."""

    session: Any
    binding: Any


class BoundLogits(NamedTuple):
    """What a step of the decoder writes its logits to.

    A binding does not keep what it points to alive, so this has to be kept.

    Attributes:
        last: float32 [num_rows, 1, vocab_size], of the last position.
        earlier: float32 [num_rows, num_earlier, vocab_size], of those before it.
        num_earlier: How many these are, as the graph gets it.
    """

    last: Logits
    earlier: Logits
    num_earlier: Any


class OrtEngine:
    """Runs a package's graphs; a `phi_edge.engine.base.Engine`."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        provider: str,
        num_threads: int | None = None,
        provider_options: Mapping[str, object] | None = None,
    ) -> None:
        """Open the graphs. The vision graph is opened when the first image comes."""
        self.model = manifest.model
        self.provider = provider
        self.provider_options = dict(provider_options or {})
        # Where keys and values stay from step to step.
        record = find_provider(provider)
        self.device = record.memory
        self.device_id = int(str(self.provider_options.get("device_id", 0)))
        self.chunk_size = record.chunk_size
        self._folder = folder
        self._num_threads = num_threads
        self._value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self.decoder = self._open(DECODER)
        self.prefill = self._open(PREFILL) if PREFILL in manifest.graphs else None
        self.embedding = self._open(EMBEDDING)

    def bind_decoder(self) -> BoundGraph:
        """The decoder, with a new binding."""
        return BoundGraph(self.decoder, self.decoder.io_binding())

    def bind_prefill(self) -> BoundGraph | None:
        """The prefill graph, with a new binding; None if the package has none."""
        return self.prefill and BoundGraph(self.prefill, self.prefill.io_binding())

    def _open(self, role: str) -> Any:
        path = self._folder / GRAPH_FILES[role]
        return open_session(path, self.provider, self._num_threads, self.provider_options)

    @cached_property
    def _vision(self) -> Any:
        return self._open(VISION)

    def encode_image(self, crops: ImageCrops, cancel: threading.Event | None = None) -> Features:
        """See `Engine.encode_image`."""
        return encode_image(self._vision, crops, cancel)

    def begin(self) -> OrtRun:
        """See `Engine.begin`."""
        return OrtRun(self)

    def start(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        cancel: threading.Event | None = None,
    ) -> OrtRun:
        """See `Engine.start`."""
        run = self.begin()
        run.extend(input_ids, image_features, cancel)
        return run

    def restore(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        rows: Iterable[Rows],
        rope_limit: int,
    ) -> OrtRun:
        """See `Engine.restore`."""
        check_tokens(self.model, len(input_ids), input_ids, image_features)
        run = OrtRun(self)
        run.load_rows(input_ids, image_features, rows, rope_limit)
        return run

    def step(
        self,
        graph: BoundGraph,
        input_ids: npt.NDArray[np.int64],
        image_features: npt.NDArray[np.floating[Any]],
        num_tokens: int,
        rope_length: int,
        cancel: threading.Event | None,
    ) -> None:
        """Run new tokens; the logits and the cache are where the binding says.

        Args:
            graph: What to run, with the cache and the logits bound.
            input_ids: int64 [batch, num_new]; negative ids are image slots.
            image_features: [num_slots, hidden_size].
            num_tokens: Tokens of each sequence, these included.
            rope_length: Length that tells which RoPE factors apply.
            cancel: What may end the run.

        Raises:
            GenerationCancelled: The run was ended; the cache's rows of the new tokens may be
                half written.
            EngineError: It failed.
        """
        value = self._value
        # A binding does not keep what it points to alive; these names do until the run is over.
        mask = np.ones((len(input_ids), num_tokens), np.int64)
        length = np.array([rope_length], np.int64)
        with run_options("running the decoder", cancel) as options:
            (embeds,) = self.embedding.run_with_ort_values(
                [package.INPUTS_EMBEDS],
                {
                    package.INPUT_IDS: value(input_ids),
                    package.IMAGE_FEATURES: value(image_features),
                },
                options,
            )
            graph.binding.bind_ortvalue_input(package.INPUTS_EMBEDS, embeds)
            graph.binding.bind_ortvalue_input(package.ATTENTION_MASK, value(mask))
            graph.binding.bind_ortvalue_input(package.ROPE_LENGTH, value(length))
            graph.session.run_with_iobinding(graph.binding, options)

    def bind_logits(
        self, graphs: Iterable[BoundGraph], num_rows: int, num_earlier: int = 0
    ) -> BoundLogits:
        """Bind arrays for the logits of each sequence's last positions.

        Args:
            graphs: Those that write to them.
            num_rows: Sequences.
            num_earlier: Positions before the last.
        """
        vocab_size = self.model.vocab_size
        last, earlier = (
            np.empty((num_rows, count, vocab_size), np.float32) for count in (1, num_earlier)
        )
        count = self._value(np.array([num_earlier], np.int64))
        for _, binding in graphs:
            binding.bind_ortvalue_output(package.LOGITS, self._value(last))
            binding.bind_ortvalue_output(package.EARLIER_LOGITS, self._value(earlier))
            binding.bind_ortvalue_input(package.NUM_EARLIER, count)
        return BoundLogits(last, earlier, count)

    def close(self) -> None:
        """See `Engine.close`."""
        del self.decoder, self.prefill, self.embedding
        self.__dict__.pop("_vision", None)


class OrtRun(Lent):
    """One sequence on ONNX Runtime; a `phi_edge.engine.base.Run`.

    Other RoPE factors give other keys, so a sequence that passes its `ModelInfo.rope_limit` (or
    comes back) is prefilled again as a whole, images included,
    from the image features that it keeps.
    """

    def __init__(self, engine: OrtEngine) -> None:
        """Begin a sequence that has no tokens yet."""
        self._engine = engine
        self._model = engine.model
        self._ids: list[int] = []
        self._image_features = np.empty((0, engine.model.hidden_size), engine.model.io_dtype)
        self._cancel: threading.Event | None = None
        self._num_cached = 0
        # Of the sequence whose keys are cached.
        self._rope_limit = engine.model.rope_limit(0)
        self._logits_are_current = False
        self._cache = KeyValueCache(engine.model, engine.device, engine.device_id)
        self._decoder = engine.bind_decoder()
        self._prefill = engine.bind_prefill()
        self._graphs = [graph for graph in (self._decoder, self._prefill) if graph]
        self._logits = engine.bind_logits(self._graphs, 1)

    @property
    def input_ids(self) -> npt.NDArray[np.int64]:
        """See `Run.input_ids`."""
        return np.array(self._ids, np.int64)

    @property
    def num_tokens(self) -> int:
        """See `Run.num_tokens`."""
        return len(self._ids)

    @property
    def num_cached(self) -> int:
        """See `Run.num_cached`."""
        has_same_factors = self._model.rope_limit(len(self._ids)) == self._rope_limit
        return self._num_cached if has_same_factors else 0

    @property
    def num_bytes(self) -> int:
        """See `Run.num_bytes`."""
        return self._cache.num_bytes + self._image_features.nbytes

    @property
    def logits(self) -> Logits:
        """See `Run.logits`. After a rewind, the last token is run again."""
        if not self._logits_are_current:
            self.prefill()
        logits: Logits = self._logits.last[0, 0].copy()
        return logits

    @property
    def room(self) -> int:
        """See `Run.room`."""
        num_tokens, limit = len(self._ids), self._model.rope_limit(len(self._ids) + 1)
        if self._num_cached < num_tokens or self._rope_limit != limit:
            limit = min(limit, num_tokens + 1)  # all of it is run again
        return min(limit - num_tokens, self._engine.chunk_size)

    def append(self, token_ids: int | Sequence[int]) -> Logits:
        """See `Run.append`."""
        step = check_step(self._model, self, token_ids)
        self._ids += step
        self.prefill(len(step) - 1)
        logits = np.concatenate([self._logits.earlier[0], self._logits.last[0]])
        return logits.reshape(*np.shape(token_ids), -1)

    def extend(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        cancel: threading.Event | None = None,
    ) -> None:
        """See `Run.extend`."""
        check_tokens(self._model, len(self._ids) + len(input_ids), input_ids, image_features)
        self._image_features = np.concatenate(
            [self._image_features, image_features], dtype=self._model.io_dtype
        )
        self._ids += input_ids.tolist()
        self._cancel = cancel
        self.prefill()

    def rewind(self, num_tokens: int) -> None:
        """See `Run.rewind`."""
        check_rewind(num_tokens, len(self._ids))
        if num_tokens < len(self._ids):
            self._logits_are_current = False
        num_features = len(self._image_features) - self._num_slots(num_tokens)
        self._image_features = self._image_features[:num_features]
        del self._ids[num_tokens:]
        self._num_cached = min(self._num_cached, num_tokens)

    def fork(self, num_rows: int) -> OrtBatch:
        """See `Run.fork`."""
        if self._num_cached < len(self._ids):
            self.prefill()
        engine, num_tokens = self._engine, len(self._ids)
        cache = KeyValueCache(self._model, engine.device, engine.device_id, num_rows)
        cache.load_rows(self._cache.rows(num_tokens), num_tokens)
        return OrtBatch(engine, cache, num_tokens, self._cancel)

    def rows(self, num_tokens: int) -> Iterator[Rows]:
        """See `Run.rows`."""
        if num_tokens > self._num_cached:
            raise ValueError(f"{self._num_cached} tokens are cached, not {num_tokens}")
        return self._cache.rows(num_tokens)

    def load_rows(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        rows: Iterable[Rows],
        rope_limit: int,
    ) -> None:
        """Begin with tokens whose keys and values are known; see `Engine.restore`."""
        self._ids = input_ids.tolist()
        self._image_features = image_features.astype(self._model.io_dtype)
        self._cache.load_rows(rows, len(self._ids))
        self._bind_cache()
        self._num_cached, self._rope_limit = len(self._ids), rope_limit

    def prefill(self, num_earlier: int = 0) -> None:
        """Run every token that is not cached, in chunks, between which it can be cancelled.

        Args:
            num_earlier: Give the logits of this many of the last tokens but one, too.
        """
        self._logits_are_current = False
        if num_earlier != self._logits.earlier.shape[1]:
            self._logits = self._engine.bind_logits(self._graphs, 1, num_earlier)
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
        # Rows of the image features that are still to come.
        features = self._image_features
        features = features[len(features) - self._num_slots(self._num_cached) :]
        while self._num_cached < len(self._ids):
            check_cancelled(self._cancel)
            stop = self._num_cached + self._engine.chunk_size
            features = self._run_chunk(self._num_cached, stop, features)
            self._cache.note_use(self._num_cached)
        self._logits_are_current = True

    def _bind_cache(self) -> None:
        for _, binding in self._graphs:
            self._cache.bind(binding)

    def _num_slots(self, start: int) -> int:
        """Image slots from the token `start` on."""
        return sum(token_id < 0 for token_id in self._ids[start:])

    def _run_chunk(
        self, start: int, stop: int, features: npt.NDArray[np.floating[Any]]
    ) -> npt.NDArray[np.floating[Any]]:
        """Extend the cache, which holds `start` tokens, by the next ones up to `stop`.

        Args:
            start: First token of the chunk.
            stop: Where it ends, if the sequence is as long.
            features: For the image slots from `start` on.

        Returns:
            The features that are left for later chunks.
        """
        ids = np.array([self._ids[start:stop]], np.int64)
        num_slots = int((ids < 0).sum())
        total = start + ids.size
        # Guesses are verified by the very weights that decode.
        is_prompt = ids.size >= _MIN_PREFILL_TOKENS and not self._logits.earlier.size
        graph = (is_prompt and self._prefill) or self._decoder
        try:
            self._engine.step(graph, ids, features[:num_slots], total, len(self._ids), self._cancel)
        except GenerationCancelled:
            raise  # the chunks before are whole
        except Exception:
            self._num_cached = 0  # nobody knows what is in the cache now
            raise
        self._num_cached = total
        return features[num_slots:]
