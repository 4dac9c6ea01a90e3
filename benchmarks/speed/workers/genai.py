"""A package in onnxruntime-genai.

Its own image processor always cuts an image into up to 16 crops, and pads them to 17. To compare
the same work, it is given pixels that are cut already, and no time for cutting is counted. With
`padded_crops` they are padded as well, and the vision graph has as much to do as in its own use.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime_genai as og

from .protocol import NUM_AROUND, Figures, count_image_tokens, peak_rss_bytes, serve


class Genai:
    """A loaded package, with one sequence that goes on."""

    def __init__(
        self, model: str, *, num_threads: int | None = None, padded_crops: int | None = None
    ) -> None:
        """Load a package.

        Args:
            model: Its folder.
            num_threads: Threads of each graph; what it takes by itself when None, which is one
                where there are two processors.
            padded_crops: Crops that the vision graph is given of an image, those beyond its own
                all zeros; its own alone when None.
        """
        loaded = og.Config(model)
        if num_threads:
            options = {"session_options": {"intra_op_num_threads": num_threads}}
            roles = ("decoder", "embedding", "vision")
            loaded.overlay(json.dumps({"model": dict.fromkeys(roles, options)}))
        self._model = og.Model(loaded)
        self._padded_crops = padded_crops
        config = json.loads((Path(model) / "genai_config.json").read_text(encoding="utf-8"))
        self._vocab_size = config["model"]["vocab_size"]
        self._rng = np.random.default_rng(0)
        self._generator: Any = None

    def prefill(self, num_tokens: int) -> Figures:
        """Start a sequence of random tokens."""
        self._start(num_tokens + 256)
        ids = self._tokens(num_tokens)
        start = time.perf_counter()
        self._generator.append_tokens(ids)
        self._generator.get_logits()
        return {"tokens_per_s": num_tokens / (time.perf_counter() - start)}

    def decode(self, num_tokens: int) -> Figures:
        """Add tokens to the sequence, one by one, each the likeliest."""
        start = time.perf_counter()
        for _ in range(num_tokens):
            self._generator.generate_next_token()
        return {"tokens_per_s": num_tokens / (time.perf_counter() - start)}

    def question(self, seed: int, rows: int, columns: int, num_tokens: int) -> Figures:
        """Ask about a new image that has been cut into rows * columns crops and the whole image."""
        num_image_tokens = count_image_tokens(rows, columns)
        slots = np.full(num_image_tokens, -1, np.int32)
        before, after = map(self._tokens, NUM_AROUND)
        shape = (1, rows * columns + 1, 3, 336, 336)
        pixels = np.random.default_rng(seed).standard_normal(shape, np.float32)
        if self._padded_crops is not None:
            num_more = self._padded_crops - pixels.shape[1]
            pixels = np.pad(pixels, [(0, 0), (0, num_more), (0, 0), (0, 0), (0, 0)])
        inputs = og.NamedTensors()
        inputs["input_ids"] = np.concatenate([before, slots, after])[None]
        inputs["pixel_values"] = pixels
        inputs["image_sizes"] = np.array([[rows * 336, columns * 336]], np.int64)
        inputs["num_image_tokens"] = np.array([[num_image_tokens]], np.int64)
        start = time.perf_counter()
        self._start(num_image_tokens + 64 + num_tokens)
        self._generator.set_inputs(inputs)
        self._generator.generate_next_token()
        self._generator.get_next_tokens()
        first = time.perf_counter() - start
        for _ in range(num_tokens - 1):
            self._generator.generate_next_token()
        return {"first_token_s": first, "peak_rss_bytes": peak_rss_bytes()}

    def _start(self, max_length: int) -> None:
        # The last sequence's cache has to go before the next one's comes.
        self._generator = None
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=max_length, do_sample=False)
        self._generator = og.Generator(self._model, parameters)

    def _tokens(self, count: int) -> npt.NDArray[np.int32]:
        return self._rng.integers(100, self._vocab_size, count, np.int32)


if __name__ == "__main__":
    serve(Genai)
