"""What an engine is: the seam between the model and whatever runs its graphs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from phi_edge.errors import ContextLengthError, GenerationCancelled, PromptError
from phi_edge.image import ImageCrops
from phi_edge.package import ModelInfo

# Tokens of a chunk of a prompt on a CPU: they keep the activations in its cache, and a chunk reads
# the whole key/value cache of earlier ones.
CPU_CHUNK_SIZE = 256

Logits = npt.NDArray[np.float32]
Features = npt.NDArray[np.float32]
# Keys or values of one layer, [kv_heads, num_tokens, head_size], in the cache's own type.
Rows = npt.NDArray[Any]


class Batch(Protocol):
    """Sequences that begin alike, are equally long, and grow together.

    What a step costs is mostly reading the weights, which it does once for all rows.
    """

    @property
    def num_tokens(self) -> int:
        """Tokens of each sequence."""

    @property
    def max_tokens(self) -> int:
        """How long the sequences can become here; `Run` goes further."""

    def append(self, token_ids: Sequence[int]) -> Logits:
        """Add one token to each sequence.

        Returns:
            float32 [num_rows, vocab_size].

        Raises:
            ContextLengthError: The sequences have `max_tokens`.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but these, which are numbered anew in this order."""


class Run(Protocol):
    """One sequence, with the keys and values of its tokens cached."""

    @property
    def input_ids(self) -> npt.NDArray[np.int64]:
        """int64 [num_tokens]; negative ids are image slots."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the sequence, image slots included."""

    @property
    def num_cached(self) -> int:
        """How many of the first tokens need not be run again.

        Less than all after a rewind, and after a step that was cancelled or failed.
        """

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

    def fork(self, num_rows: int) -> Batch | None:
        """So many copies of the sequence; None if the engine runs one sequence at a time."""

    def rows(self, num_tokens: int) -> Iterator[Rows]:
        """Cached keys and values of the first tokens, in an order of the engine's own.

        They can be given to `Engine.restore` of the same package, in another process too.

        Raises:
            ValueError: So many tokens are not cached.
        """


class Engine(Protocol):
    """Runs the graphs of one package."""

    def encode_image(self, crops: ImageCrops, cancel: threading.Event | None = None) -> Features:
        """float32 [num_tokens, hidden_size]: what takes the place of token embeddings.

        Raises:
            GenerationCancelled: `cancel` was set; see `CancelToken`.
        """

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
            cancel: Setting it stops this prefill, and all that the run does later; see
                `CancelToken`.

        Raises:
            PromptError: Ids are out of range, or slots and features do not match.
            ContextLengthError: The sequence is longer than the context.
            GenerationCancelled: `cancel` was set.
        """

    def restore(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        rows: Iterable[Rows],
        *,
        is_long: bool,
    ) -> Run:
        """A run with the keys and values that `Run.rows` gave, to be extended.

        Args:
            input_ids: int64 [num_tokens], the tokens that the rows belong to.
            image_features: As in `start`.
            rows: All that `Run.rows` gave, in its order.
            is_long: Whether the run that they are of was longer than
                `original_context_length`; a sequence on the other side is prefilled again.

        Raises:
            PromptError, ContextLengthError: As in `start`.
        """

    def close(self) -> None:
        """Free the graphs. Runs that are under way must not be used any more."""


def check_cancelled(cancel: threading.Event | None) -> None:
    """Raise GenerationCancelled when the caller asked to stop."""
    if cancel is not None and cancel.is_set():
        raise GenerationCancelled("the run was cancelled")


def check_tokens(
    model: ModelInfo,
    num_tokens: int,
    input_ids: npt.NDArray[np.int64],
    image_features: Features,
) -> None:
    """Check tokens that would make a sequence `num_tokens` long; see `Engine.start`."""
    if num_tokens == 0:
        raise PromptError("the prompt has no tokens")
    if num_tokens > model.context_length:
        raise ContextLengthError(num_tokens, model.context_length)
    if input_ids.max(initial=0) >= model.vocab_size:
        raise PromptError(
            f"token id {input_ids.max()} is outside the vocabulary of {model.vocab_size}"
        )
    num_slots = int((input_ids < 0).sum())
    if image_features.shape != (num_slots, model.hidden_size):
        raise PromptError(
            f"the prompt has {num_slots} image slots and the images give "
            f"{len(image_features)} rows of features: name each image exactly once"
        )


def check_next(model: ModelInfo, num_tokens: int, token_ids: Sequence[int]) -> None:
    """Check tokens that follow a sequence `num_tokens` long; see `Run.verify`."""
    for token_id in token_ids:
        if not 0 <= token_id < model.vocab_size:
            raise PromptError(
                f"token id {token_id} is outside the vocabulary of {model.vocab_size}"
            )
    if num_tokens == model.context_length:
        raise ContextLengthError(num_tokens + 1, model.context_length)


def check_rewind(num_tokens: int, length: int) -> None:
    """Check that a sequence can be cut to its first `num_tokens`; see `Run.rewind`."""
    if not 1 <= num_tokens <= length:
        raise ValueError(f"cannot rewind a sequence of {length} tokens to {num_tokens}")
