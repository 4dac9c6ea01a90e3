"""A GGUF file in llama.cpp, by llama-cpp-python."""

from __future__ import annotations

import os
import time

import numpy as np
from llama_cpp import Llama

from .protocol import Figures, serve

_VOCAB_SIZE = 32000


class LlamaCpp:
    """A loaded file, with one sequence that goes on."""

    def __init__(self, model: str, num_ctx: int = 4096, *, flash_attn: bool = False) -> None:
        threads = os.cpu_count()
        self._model = Llama(
            model,
            n_ctx=num_ctx,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=flash_attn,
            verbose=False,
        )
        self._rng = np.random.default_rng(0)

    def prefill(self, num_tokens: int) -> Figures:
        """Start a sequence of random tokens."""
        ids = self._rng.integers(100, _VOCAB_SIZE, num_tokens).tolist()
        self._model.reset()
        start = time.perf_counter()
        self._model.eval(ids)
        return {"tokens_per_s": num_tokens / (time.perf_counter() - start)}

    def decode(self, num_tokens: int) -> Figures:
        """Add tokens to the sequence, one by one; which ones, does not change their time."""
        ids = self._rng.integers(100, _VOCAB_SIZE, num_tokens).tolist()
        start = time.perf_counter()
        for token_id in ids:
            self._model.eval([token_id])
        return {"tokens_per_s": num_tokens / (time.perf_counter() - start)}


if __name__ == "__main__":
    serve(LlamaCpp)
