"""The graphs of a package on ONNX Runtime, and one step of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phi_edge import package
from phi_edge.engine.base import Logits
from phi_edge.engine.kv_cache import KeyValueCache
from phi_edge.engine.providers import find_provider
from phi_edge.engine.session import import_onnxruntime, open_session, run_options
from phi_edge.engine.vision import VisionEncoder
from phi_edge.package import Package


class BoundGraph:
    """A session of the decoder, or of the prompt graph, with what it is bound to.

    A binding does not keep what it points to alive, so this does.

    Attributes:
        session: The session.
        binding: Its binding.
        last: float32 [batch_size, 1, vocab_size], logits of the last position.
        earlier: float32 [batch_size, num_earlier, vocab_size], of those before it.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.binding = session.io_binding()
        self.last = self.earlier = np.empty((0, 0, 0), np.float32)
        self._num_earlier: Any = None

    def bind_logits(self, batch_size: int, num_earlier: int, vocab_size: int) -> None:
        """Bind arrays for logits, where those that are bound are for others."""
        shape = (batch_size, num_earlier, vocab_size)
        if self.last.size and self.earlier.shape == shape:
            return
        value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self.last, self.earlier = (
            np.empty((batch_size, count, vocab_size), np.float32) for count in (1, num_earlier)
        )
        self._num_earlier = value(np.array([num_earlier], np.int64))
        self.binding.bind_ortvalue_output(package.LOGITS, value(self.last))
        self.binding.bind_ortvalue_output(package.EARLIER_LOGITS, value(self.earlier))
        self.binding.bind_ortvalue_input(package.NUM_EARLIER, self._num_earlier)


class OrtGraphs:
    """Sessions of a package's graphs.

    Attributes:
        model: What the package says of the model.
        chunk_size: Most tokens of a step.
        decoder: Session of the decoder.
        prompt_session: Session of the prompt graph; None if the package has none.
        embedding: Session of the embedding.
        vision: What encodes images.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Package,
        provider: str,
        num_threads: int | None = None,
        provider_options: Mapping[str, object] | None = None,
    ) -> None:
        """Open the graphs but that of vision."""
        self.model = manifest.model
        self._paths = {role: folder / file for role, file in manifest.graph_files.items()}
        self._provider = provider
        self._num_threads = num_threads
        self._provider_options = dict(provider_options or {})
        record = find_provider(provider)
        self.chunk_size = record.chunk_size
        # Where keys and values stay from step to step.
        self._memory = record.memory
        self._device_id = int(str(self._provider_options.get("device_id", 0)))
        self.value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self.decoder = self._open(package.DECODER)
        has_prompt_graph = package.PREFILL in self._paths
        self.prompt_session = self._open(package.PREFILL) if has_prompt_graph else None
        self.embedding = self._open(package.EMBEDDING)
        self.vision = VisionEncoder(folder, manifest, provider, num_threads, provider_options)

    def _open(self, role: str) -> Any:
        path = self._paths[role]
        return open_session(path, self._provider, self._num_threads, self._provider_options)

    def close(self) -> None:
        """Free the graphs."""
        del self.decoder, self.prompt_session, self.embedding
        self.vision.close()

    def new_cache(self, batch_size: int = 1) -> KeyValueCache:
        """Make an empty key/value cache in the provider's memory."""
        return KeyValueCache(self.model, self._memory, self._device_id, batch_size)

    def bind_decoder(self) -> BoundGraph:
        """Give the decoder a new binding."""
        return BoundGraph(self.decoder)

    def bind_prompt_graph(self) -> BoundGraph | None:
        """Give the prompt graph a new binding; None if the package has none."""
        return self.prompt_session and BoundGraph(self.prompt_session)

    def chunk_end(self, start: int, rope_length: int) -> int:
        """Choose where a chunk of a prompt ends that begins with the token `start`.

        It may be beyond the prompt's end.
        """
        del rope_length  # the decoder is told
        return start + self.chunk_size

    def step(
        self,
        graph: BoundGraph,
        input_ids: npt.NDArray[np.int64],
        image_features: npt.NDArray[np.floating[Any]],
        num_tokens: int,
        rope_length: int,
        cancel: threading.Event | None,
        num_earlier: int = 0,
    ) -> Logits:
        """Run new tokens, whose keys and values are then in the cache that is bound.

        Args:
            graph: What to run.
            input_ids: int64 [batch_size, num_new]; negative ids are image slots.
            image_features: [num_slots, hidden_size].
            num_tokens: Tokens of each sequence, these included.
            rope_length: Length that tells which RoPE factors apply.
            cancel: What may end the run; what it was to write may be half written then.
            num_earlier: How many positions before the last to give logits for, too.

        Returns:
            float32 [batch_size, num_earlier + 1, vocab_size].

        Raises:
            GenerationCancelled: The run was ended.
            EngineError: It failed.
        """
        graph.bind_logits(len(input_ids), num_earlier, self.model.vocab_size)
        mask = np.ones((len(input_ids), num_tokens), np.int64)
        length = np.array([rope_length], np.int64)
        with run_options("running the decoder", cancel) as options:
            feeds = {
                package.INPUTS_EMBEDS: self.embed(input_ids, image_features, options),
                package.ATTENTION_MASK: self.value(mask),
                package.ROPE_LENGTH: self.value(length),
            }
            run_bound(graph, feeds, options)
        return np.concatenate([graph.earlier, graph.last], axis=1)

    def embed(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: npt.NDArray[np.floating[Any]],
        options: Any,
    ) -> Any:
        """Embed tokens, with image features in their slots: [batch_size, num_new, hidden_size]."""
        feeds = {
            package.INPUT_IDS: self.value(input_ids),
            package.IMAGE_FEATURES: self.value(image_features),
        }
        (embeds,) = self.embedding.run_with_ort_values([package.INPUTS_EMBEDS], feeds, options)
        return embeds


def run_bound(graph: BoundGraph, feeds: Mapping[str, Any], options: Any) -> None:
    """Run a graph with what is bound, and these inputs."""
    for name, value in feeds.items():
        graph.binding.bind_ortvalue_input(name, value)
    graph.session.run_with_iobinding(graph.binding, options)
