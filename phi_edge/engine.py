"""What an engine is: the seam between the model and whatever runs its graphs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from phi_edge.errors import GenerationCancelled
from phi_edge.image import ImageCrops

Logits = npt.NDArray[np.float32]
Features = npt.NDArray[np.float32]


class Run(Protocol):
    """One sequence, with the keys and values of its tokens cached."""

    @property
    def input_ids(self) -> npt.NDArray[np.int64]:
        """int64 [num_tokens]; negative ids are image slots."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the sequence, image slots included."""

    @property
    def num_bytes(self) -> int:
        """Memory that the sequence holds."""

    @property
    def logits(self) -> Logits:
        """float32 [vocab_size]: scores of the token after the last one."""

    def append(self, token_id: int) -> Logits:
        """Add one token (a decode step) and give the new logits.

        Raises:
            ContextLengthError: The context is full; the sequence stays as it was.
        """

    def verify(self, token_ids: Sequence[int]) -> Logits:
        """Add one token, and with it, in the same step, guesses of those that follow.

        Guesses for which there is no room are left out, and so are those that would have the
        whole sequence prefilled again. `rewind` takes back what was guessed wrong.

        Args:
            token_ids: The token, then the guesses.

        Returns:
            float32 [num_added, vocab_size]: the logits after each token that was added.

        Raises:
            ContextLengthError: As for `append`.
        """

    def extend(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        cancel: threading.Event | None = None,
    ) -> None:
        """Prefill more tokens; see `Engine.start`. From now on `cancel` is what stops the run."""

    def rewind(self, num_tokens: int) -> None:
        """Drop all tokens but the first `num_tokens`, at least one."""


class Engine(Protocol):
    """Runs the graphs of one package."""

    def encode_image(self, crops: ImageCrops) -> Features:
        """float32 [num_tokens, hidden_size]: what takes the place of token embeddings."""

    def start(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        cancel: threading.Event | None = None,
    ) -> Run:
        """Prefill a sequence.

        Args:
            input_ids: int64 [num_tokens]; negative ids are image slots.
            image_features: float32 [num_slots, hidden_size], in sequence order.
            cancel: Setting it stops this prefill, and any that the run does later, between two
                chunks.

        Raises:
            PromptError: Ids are out of range, or slots and features do not match.
            ContextLengthError: The sequence is longer than the context.
            GenerationCancelled: `cancel` was set.
        """

    def close(self) -> None:
        """Free the graphs. Runs that are under way must not be used any more."""


def check_cancelled(cancel: threading.Event | None) -> None:
    """Raise GenerationCancelled when the caller asked to stop."""
    if cancel is not None and cancel.is_set():
        raise GenerationCancelled("the run was cancelled")
