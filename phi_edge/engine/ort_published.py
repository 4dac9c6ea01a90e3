"""The engine for packages that others have published: their graphs know other inputs than ours."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from phi_edge import package
from phi_edge.engine.base import Logits
from phi_edge.engine.ort import OrtEngine
from phi_edge.engine.ort_step import BoundGraph, run_bound
from phi_edge.engine.session import numpy_dtype, run_options
from phi_edge.package import PublishedPackage


class PublishedEngine(OrtEngine):
    """Runs the graphs of a `PublishedPackage`.

    Their decoder cannot be told how long a prompt becomes, so it has to see for itself that the
    long RoPE factors apply. Where it looks at the length of the attention mask, a chunk gets the
    mask of the whole prompt, with zeros for the tokens that are still to come; this is known to be
    right on the CPU, and elsewhere the first chunk passes the boundary. Where it looks at the
    largest position, a chunk that does not pass the boundary gets one more token, whose position
    does. No other token sees it, and the next chunk takes its place in the cache.
    """

    def __init__(
        self,
        folder: Path,
        manifest: PublishedPackage,
        provider: str,
        num_threads: int | None = None,
        provider_options: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(folder, manifest, provider, num_threads, provider_options)
        self._merges_features = manifest.merges_features
        self._looks_at_mask = manifest.rope_input == package.ATTENTION_MASK
        self._looks_at_positions = manifest.rope_input == package.POSITION_IDS
        self._pads_mask = self._looks_at_mask and provider == "cpu"
        inputs = {given.name for given in self.decoder.get_inputs()}
        self._has_position_ids = package.POSITION_IDS in inputs
        self._has_num_logits = package.NUM_LOGITS_TO_KEEP in inputs
        outputs = {output.name: output for output in self.decoder.get_outputs()}
        self._logits_dtype = numpy_dtype(outputs[package.LOGITS])

    @override
    def chunk_end(self, start: int, rope_length: int) -> int:
        end = super().chunk_end(start, rope_length)
        boundary = self.model.original_context_length
        if rope_length > boundary and self._looks_at_mask and not self._pads_mask:
            end = max(end, boundary + 1)
        return end

    @override
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
        batch_size, num_new = input_ids.shape
        positions = np.arange(num_tokens - num_new, num_tokens, dtype=np.int64)
        boundary = self.model.original_context_length
        if num_tokens <= boundary < rope_length and self._looks_at_positions:
            input_ids = np.pad(input_ids, ((0, 0), (0, 1)))
            positions = np.append(positions, boundary)
            num_tokens, num_new = num_tokens + 1, num_new + 1
        mask = np.ones((batch_size, num_tokens), np.int64)
        if self._pads_mask:
            mask = np.pad(mask, ((0, 0), (0, rope_length - num_tokens)))
        arrays = {package.ATTENTION_MASK: mask}
        if self._has_position_ids:
            arrays[package.POSITION_IDS] = np.tile(positions, (batch_size, 1))
        num_logits = num_new
        if self._has_num_logits:
            num_logits = num_earlier + 1
            arrays[package.NUM_LOGITS_TO_KEEP] = np.array(num_logits, np.int64)
        logits = np.empty((batch_size, num_logits, self.model.vocab_size), self._logits_dtype)
        graph.binding.bind_ortvalue_output(package.LOGITS, self.value(logits))
        with run_options("running the decoder", cancel) as options:
            feeds = {name: self.value(array) for name, array in arrays.items()}
            feeds[package.INPUTS_EMBEDS] = self.embed(input_ids, image_features, options)
            run_bound(graph, feeds, options)
        return logits[:, -1 - num_earlier :].astype(np.float32)

    @override
    def embed(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: npt.NDArray[np.floating[Any]],
        options: Any,
    ) -> Any:
        if self._merges_features:
            return super().embed(input_ids, image_features, options)
        feeds = {package.INPUT_IDS: np.maximum(input_ids, 0)}
        (embeds,) = self.embedding.run([package.INPUTS_EMBEDS], feeds, options)
        embeds[input_ids < 0] = image_features
        return self.value(embeds)
