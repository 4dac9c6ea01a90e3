"""The checkpoint itself as what a package is compared with."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from phi_edge.image.crops import ImageCrops
from phi_edge.text.prompt import Prompt

from .checkpoint import Checkpoint
from .journal import Journal
from .layerwise import LayerwiseModel
from .lock import hold
from .recipe import Floats


class CheckpointReference:
    """Runs a checkpoint in float32, layer by layer; a `Reference` for certificates."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Take the checkpoint.

        Args:
            checkpoint: What to run.
            folder: Where activations are kept meanwhile; what is in it is removed.
        """
        self._checkpoint = checkpoint
        self._folder = folder
        self._features: dict[bytes, Floats] = {}
        self.name = f"{checkpoint.config.name}, checkpoint"
        self.tokenizer = checkpoint.read_tokenizer()

    def logits(self, prompts: Sequence[Prompt], counts: Sequence[int]) -> Iterator[Floats]:
        """Compute for each prompt what predicts its last `count` tokens: [count, vocab_size]."""
        with self._journal() as journal:
            head: Floats = self._checkpoint.read("lm_head.weight").astype(np.float32)
            model = LayerwiseModel(self._checkpoint, prompts, journal, self._features)
            normed = model.normed()
            for rows, count in zip(normed, counts, strict=True):
                yield rows[-count - 1 : -1] @ head.T

    def image_features(self, images: Sequence[ImageCrops]) -> Iterator[Floats]:
        """Compute the features [num_tokens, hidden_size] of each image."""
        with self._journal() as journal:
            prompts = [Prompt(np.empty(0, np.int64), (image,)) for image in images]
            model = LayerwiseModel(self._checkpoint, prompts, journal, self._features)
            for of_prompt in model.image_features():
                yield from of_prompt

    @contextmanager
    def _journal(self) -> Iterator[Journal]:
        """Open an empty journal, which is removed afterwards."""
        with hold(self._folder):
            # Like no other job: what a run left that was killed must not be used.
            journal = Journal(self._folder, {"run": uuid.uuid4().hex})
            try:
                yield journal
            finally:
                journal.clear()
