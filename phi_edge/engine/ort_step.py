"""The graphs of a package on ONNX Runtime, and one step of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from phi_edge import package
from phi_edge.engine.base import Logits
from phi_edge.engine.kv_cache import KeyValueCache
from phi_edge.engine.providers import find_provider
from phi_edge.engine.session import import_onnxruntime, open_session, run_options
from phi_edge.package import Manifest


class BoundGraph(NamedTuple):
    """A session of the decoder, or of the prompt graph, and its binding."""

    session: Any
    binding: Any


class BoundLogits(NamedTuple):
    """What a step of the decoder writes its logits to.

    A binding does not keep what it points to alive, so this has to be kept.

    Attributes:
        last: float32 [batch_size, 1, vocab_size], of the last position.
        earlier: float32 [batch_size, num_earlier, vocab_size], of those before it.
        num_earlier: How many these are, as the graph gets it.
    """

    last: Logits
    earlier: Logits
    num_earlier: Any


class OrtGraphs:
    """Sessions of a package's graphs.

    Attributes:
        model: What the package says of the model.
        chunk_size: Most tokens of a step.
        decoder: Session of the decoder.
        prompt_session: Session of the prompt graph; None if the package has none.
        embedding: Session of the embedding.
    """

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
        self._folder = folder
        self._provider = provider
        self._num_threads = num_threads
        self._provider_options = dict(provider_options or {})
        record = find_provider(provider)
        self.chunk_size = record.chunk_size
        # Where keys and values stay from step to step.
        self._memory = record.memory
        self._device_id = int(str(self._provider_options.get("device_id", 0)))
        self._value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self.decoder = self._open(package.DECODER)
        has_prompt_graph = package.PREFILL in manifest.graphs
        self.prompt_session = self._open(package.PREFILL) if has_prompt_graph else None
        self.embedding = self._open(package.EMBEDDING)

    def _open(self, role: str) -> Any:
        path = self._folder / package.GRAPH_FILES[role]
        return open_session(path, self._provider, self._num_threads, self._provider_options)

    @cached_property
    def vision(self) -> Any:
        """A session of the vision graph, opened when the first image comes."""
        return self._open(package.VISION)

    def close(self) -> None:
        """Free the graphs."""
        del self.decoder, self.prompt_session, self.embedding
        self.__dict__.pop("vision", None)

    def new_cache(self, batch_size: int = 1) -> KeyValueCache:
        """Make an empty key/value cache in the provider's memory."""
        return KeyValueCache(self.model, self._memory, self._device_id, batch_size)

    def bind_decoder(self) -> BoundGraph:
        """Give the decoder a new binding."""
        return BoundGraph(self.decoder, self.decoder.io_binding())

    def bind_prompt_graph(self) -> BoundGraph | None:
        """Give the prompt graph a new binding; None if the package has none."""
        session = self.prompt_session
        return session and BoundGraph(session, session.io_binding())

    def bind_logits(
        self, graphs: Iterable[BoundGraph], batch_size: int, num_earlier: int = 0
    ) -> BoundLogits:
        """Bind arrays for the logits of each sequence's last position, and of earlier ones."""
        vocab_size = self.model.vocab_size
        last, earlier = (
            np.empty((batch_size, count, vocab_size), np.float32) for count in (1, num_earlier)
        )
        count = self._value(np.array([num_earlier], np.int64))
        for _, binding in graphs:
            binding.bind_ortvalue_output(package.LOGITS, self._value(last))
            binding.bind_ortvalue_output(package.EARLIER_LOGITS, self._value(earlier))
            binding.bind_ortvalue_input(package.NUM_EARLIER, count)
        return BoundLogits(last, earlier, count)

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
            input_ids: int64 [batch_size, num_new]; negative ids are image slots.
            image_features: [num_slots, hidden_size].
            num_tokens: Tokens of each sequence, these included.
            rope_length: Length that tells which RoPE factors apply.
            cancel: What may end the run; what it was to write may be half written then.

        Raises:
            GenerationCancelled: The run was ended.
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
