"""Runs for prompts, which go on from whatever is kept of earlier ones."""

from __future__ import annotations

import logging
import threading
from functools import partial

import numpy as np

from phi_edge.cache.disk import DiskCache
from phi_edge.cache.memory import FeatureCache, PrefixCache, count_common_tokens
from phi_edge.engine.base import Engine, Features, Run, check_cancelled
from phi_edge.errors import EngineError
from phi_edge.image.crops import ImageCrops
from phi_edge.planning.memory import MemoryBudget
from phi_edge.text.prompt import Prompt

logger = logging.getLogger(__name__)

# Sixteen crops give 29 MB of features.
_FEATURE_CACHE_BYTES = 256 * 2**20
# In float32, a conversation takes 0.8 MB a token.
PREFIX_CACHE_BYTES = 2 * 2**30


class RunPool:
    """An engine with the caches before it: image features and runs, in memory and on disk."""

    def __init__(
        self,
        engine: Engine,
        budget: MemoryBudget,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
        disk_cache: DiskCache | None = None,
    ) -> None:
        """Take an engine, which is closed with the pool."""
        self._engine: Engine | None = engine
        self._budget = budget
        self._features = FeatureCache(_FEATURE_CACHE_BYTES)
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._disk = disk_cache

    def close(self) -> None:
        """Free the graphs, and forget what is kept in memory."""
        self._features.shrink(0)
        self._prefixes.shrink(0)
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            EngineError: The pool is closed.
        """
        if self._engine is None:
            raise EngineError("the model is closed: load it again")
        return self._engine

    def encode_image(self, crops: ImageCrops, cancel: threading.Event | None) -> Features:
        """Encode an image, or give the features that are kept."""
        features = self._features.get(crops)
        if features is not None:
            return features
        if self._disk is not None:
            features = self._disk.load_features(crops)
        if features is None:
            features = self.engine.encode_image(crops, cancel)
            if self._disk is not None:
                self._disk.save_features(crops, features)
        features.setflags(write=False)
        self._features.put(crops, features)
        return features

    def start(
        self,
        prompt: Prompt,
        cancel: threading.Event | None,
        max_tokens: int | None,
        batch_size: int,
    ) -> Run:
        """Prefill a prompt, or what is not kept of it; the run comes back when its block ends."""
        engine = self.engine
        run = self._prefixes.take(prompt)
        self._make_room(prompt, max_tokens, batch_size)
        try:
            features = self._encode_images(prompt, cancel)
            if run is None and self._disk is not None:
                run = self._disk.load_run(prompt, features, engine)
            if run is None:
                run = engine.begin()
            _extend(run, prompt, features, cancel)
        except BaseException:
            if run is not None:
                self._take_back(prompt, run)
            raise
        return run.lend(partial(self._take_back, prompt))

    def _make_room(self, prompt: Prompt, max_tokens: int | None, batch_size: int) -> None:
        """Forget what is kept, as far as a request needs its memory."""
        room = self._budget.room(prompt, max_tokens, batch_size)
        if room is not None:
            self._prefixes.shrink(room - self._features.shrink(room))

    def _encode_images(self, prompt: Prompt, cancel: threading.Event | None) -> Features:
        features = [np.empty((0, self._budget.model.hidden_size), np.float32)]
        for crops in prompt.images:
            check_cancelled(cancel)
            features.append(self.encode_image(crops, cancel))
        return np.concatenate(features)

    def _take_back(self, prompt: Prompt, run: Run) -> None:
        """Keep a run for prompts that begin as it did.

        Of one that was cancelled, what is whole is kept; of one that failed, nothing.
        """
        if run.num_cached:
            run.rewind(run.num_cached)
        # A rewound run may have nothing of use: at the change of the RoPE factors, for example.
        if self._engine is None or not run.num_cached:
            return
        if self._disk is not None and self._begins_with(run, prompt):
            self._disk.save_run(prompt, run)
        self._prefixes.put(prompt, run)

    @staticmethod
    def _begins_with(run: Run, prompt: Prompt) -> bool:
        """Tell whether a run, which may have been rewound, has the whole prompt still."""
        images = prompt.image_keys
        shared = count_common_tokens(run.input_ids, images, prompt.input_ids, images)
        return shared == prompt.num_tokens


def _extend(run: Run, prompt: Prompt, features: Features, cancel: threading.Event | None) -> None:
    """Prefill what a run does not have of a prompt; the features are those of all its images."""
    if run.num_tokens:
        logger.info("%d of %d prompt tokens are cached", run.num_tokens, prompt.num_tokens)
    num_known = np.count_nonzero(prompt.input_ids[: run.num_tokens] < 0)
    run.extend(prompt.input_ids[run.num_tokens :], features[num_known:], cancel)
