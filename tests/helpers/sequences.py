"""Token ids without meaning, for what has to hold for any, and what a model says to a prompt."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

import phi_edge
from phi_edge.engine import Engine, Features, Run

# How far logits may be apart that are computed in another order.
EXACT = 1e-5


def random_ids(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(3, 300, count, dtype=np.int64)


def greedy_tokens(model: phi_edge.Model, prompt: phi_edge.Prompt, max_tokens: int = 8) -> list[int]:
    """The likeliest tokens, of which the model keeps the run."""
    return [event.token_id for event in model.generate(prompt, max_tokens=max_tokens)]


def start(
    engine: Engine,
    input_ids: npt.NDArray[np.int64],
    image_features: Features,
    cancel: threading.Event | None = None,
) -> Run:
    """Prefill a sequence on an engine, past all caches."""
    run = engine.begin()
    run.extend(input_ids, image_features, cancel)
    return run
