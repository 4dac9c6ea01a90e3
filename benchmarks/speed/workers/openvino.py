"""An IR in OpenVINO, with the stateful cache that OpenVINO GenAI's SDPA backend uses."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from .protocol import Figures, serve

_VOCAB_SIZE = 32000


class OpenVino:
    """A compiled model, with one sequence that goes on."""

    def __init__(self, model: str, **properties: Any) -> None:
        compiled = ov.Core().compile_model(
            model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **properties}
        )
        self._request = compiled.create_infer_request()
        self._rng = np.random.default_rng(0)
        self._num_tokens = 0

    def prefill(self, num_tokens: int) -> Figures:
        """Start a sequence of random tokens."""
        ids = self._rng.integers(100, _VOCAB_SIZE, (1, num_tokens))
        self._request.reset_state()
        self._num_tokens = 0
        start = time.perf_counter()
        self._run(ids)
        return {"tokens_per_s": num_tokens / (time.perf_counter() - start)}

    def decode(self, num_tokens: int) -> Figures:
        """Add tokens to the sequence, one by one; which ones, does not change their time."""
        ids = self._rng.integers(100, _VOCAB_SIZE, num_tokens)
        start = time.perf_counter()
        for token_id in ids:
            self._run(np.array([[token_id]]))
        return {"tokens_per_s": num_tokens / (time.perf_counter() - start)}

    def _run(self, ids: npt.NDArray[np.int64]) -> None:
        first, self._num_tokens = self._num_tokens, self._num_tokens + ids.size
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((1, self._num_tokens), np.int64),
            "position_ids": np.arange(first, self._num_tokens)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits = self._request.infer(inputs)["logits"]
        if not np.isfinite(logits).all():
            raise FloatingPointError("the logits are not finite")


if __name__ == "__main__":
    serve(OpenVino)
