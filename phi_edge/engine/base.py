"""What an engine is: the seam between the model and whatever runs its graphs."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from phi_edge.errors import ContextLengthError, GenerationCancelled, PromptError
from phi_edge.image.crops import ImageCrops
from phi_edge.package import ModelConfig

Logits = npt.NDArray[np.float32]
Features = npt.NDArray[np.float32]
# Keys or values of one layer, [kv_heads, num_tokens, head_size], in the cache's own type.
KeyValues = npt.NDArray[Any]


class Batch(Protocol):
    """Sequences that begin alike, are equally long, and grow together.

    What a step costs is mostly reading the weights, which it does once for all members.
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
            float32 [batch_size, vocab_size].

        Raises:
            ContextLengthError: The sequences have `max_tokens`.
        """

    def keep(self, members: Sequence[int]) -> None:
        """Drop all sequences but these, which are numbered anew in this order."""


class Run(ABC):
    """One sequence, with the keys and values of its tokens cached.

    At the end of a `with` block it goes back to where it came from, and is not to be used again.
    What the tokens are is kept here; an engine runs those that are not cached.
    """

    def __init__(self, model: ModelConfig) -> None:
        """Begin a sequence without tokens, to be extended before anything else."""
        self._model = model
        self._ids: list[int] = []
        self._image_features = np.empty((0, model.hidden_size), model.io_dtype)
        self._cancel: threading.Event | None = None
        self._take_back: Callable[[Run], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        take_back, self._take_back = self._take_back, None
        if take_back is not None:
            take_back(self)

    def lend(self, take_back: Callable[[Run], None]) -> Self:
        """Give the run itself, which goes to `take_back` at the end of the next `with` block."""
        self._take_back = take_back
        return self

    @property
    def input_ids(self) -> npt.NDArray[np.int64]:
        """int64 [num_tokens]; negative ids are image slots."""
        return np.array(self._ids, np.int64)

    @property
    def num_tokens(self) -> int:
        """Tokens of the sequence, image slots included."""
        return len(self._ids)

    @property
    @abstractmethod
    def num_cached(self) -> int:
        """How many of the first tokens need not be run again.

        Less than all after a rewind, and after a step that was cancelled or failed.
        """

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory that the sequence holds."""

    @property
    @abstractmethod
    def logits(self) -> Logits:
        """float32 [vocab_size]: scores of the token after the last one."""

    @property
    @abstractmethod
    def room(self) -> int:
        """Most tokens that the next `append` takes; 0 when the context is full.

        A step has room for as many as the engine runs at once, up to where the RoPE factors
        change. The one token that passes this point costs a prefill of the whole sequence.
        """

    def append(self, token_ids: int | Sequence[int]) -> Logits:
        """Add one token (a decode step), or several in the same step.

        Several are one that was chosen and guesses of those that follow; `rewind` takes back what
        was guessed wrong.

        Returns:
            Logits after each token: float32 [vocab_size] for a token, [num_tokens, vocab_size] for
            a list.

        Raises:
            PromptError: A token is outside the vocabulary.
            ContextLengthError: The context has not so much room.
            ValueError: A step has not so much `room`, or there is no token. After any of these
                errors the sequence is as it was.
        """
        step: list[int] = np.atleast_1d(token_ids).tolist()
        for token_id in step:
            if not 0 <= token_id < self._model.vocab_size:
                raise PromptError(
                    f"token id {token_id} is outside the vocabulary of {self._model.vocab_size}"
                )
        if self.num_tokens + len(step) > self._model.context_length:
            raise ContextLengthError(self.num_tokens + len(step), self._model.context_length)
        if not 1 <= len(step) <= self.room:
            raise ValueError(f"a step takes 1 to {self.room} tokens here, not {len(step)}")
        self._ids += step
        return self._run_pending(len(step) - 1).reshape(*np.shape(token_ids), -1)

    def extend(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        cancel: threading.Event | None = None,
    ) -> None:
        """Prefill more tokens.

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
        check_tokens(self._model, self.num_tokens + len(input_ids), input_ids, image_features)
        self._image_features = np.concatenate(
            [self._image_features, image_features], dtype=self._model.io_dtype
        )
        self._ids += input_ids.tolist()
        self._cancel = cancel
        self._run_pending(0)

    def rewind(self, num_tokens: int) -> None:
        """Drop all tokens but the first `num_tokens`, at least one."""
        if not 1 <= num_tokens <= self.num_tokens:
            raise ValueError(
                f"cannot rewind a sequence of {self.num_tokens} tokens to {num_tokens}"
            )
        if num_tokens < self.num_tokens:
            num_features = len(self._image_features) - self._num_slots(num_tokens)
            self._image_features = self._image_features[:num_features]
            del self._ids[num_tokens:]
            self._forget()

    def _num_slots(self, start: int) -> int:
        """Count the image slots from the token `start` on."""
        return sum(token_id < 0 for token_id in self._ids[start:])

    @abstractmethod
    def _run_pending(self, num_earlier: int) -> Logits:
        """Run every token that is not cached, in chunks, between which it can be cancelled.

        Returns:
            float32 [num_earlier + 1, vocab_size]: logits of the last tokens.
        """

    @abstractmethod
    def _forget(self) -> None:
        """Note that the sequence was cut: what is cached beyond its end is of no use."""

    @abstractmethod
    def fork(self, batch_size: int) -> Batch | None:
        """Copy the sequence into a batch; None if the engine runs one sequence at a time."""

    @abstractmethod
    def export_kv(self, num_tokens: int) -> Iterator[KeyValues]:
        """Give the cached keys and values of the first tokens, in an order of the engine's own.

        They can be given to `Engine.restore` of the same package, in another process too.

        Raises:
            ValueError: So many tokens are not cached.
        """


class Engine(Protocol):
    """Runs the graphs of one package."""

    def encode_image(self, crops: ImageCrops, cancel: threading.Event | None = None) -> Features:
        """Encode an image: float32 [num_tokens, hidden_size], in the place of token embeddings.

        Raises:
            GenerationCancelled: `cancel` was set; see `CancelToken`.
        """

    def begin(self) -> Run:
        """Make a sequence without tokens, to be extended before anything else."""

    def restore(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        key_values: Iterable[KeyValues],
        rope_limit: int,
    ) -> Run:
        """Make a run of what `Run.export_kv` gave, to be extended.

        Args:
            input_ids: int64 [num_tokens], the tokens that the keys and values belong to.
            image_features: As in `Run.extend`.
            key_values: All that `Run.export_kv` gave, in its order.
            rope_limit: `ModelConfig.rope_limit` of the run that they are of; a sequence that has
                another is prefilled again.

        Raises:
            PromptError, ContextLengthError: As in `Run.extend`.
        """

    def close(self) -> None:
        """Free the graphs. Runs that are under way must not be used any more."""


def check_cancelled(cancel: threading.Event | None) -> None:
    """Raise GenerationCancelled when the caller asked to stop."""
    if cancel is not None and cancel.is_set():
        raise GenerationCancelled("the run was cancelled")


def check_tokens(
    model: ModelConfig,
    num_tokens: int,
    input_ids: npt.NDArray[np.int64],
    image_features: Features,
) -> None:
    """Check tokens that would make a sequence `num_tokens` long; see `Run.extend`."""
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
            f"{len(image_features)} features: name each image exactly once"
        )
