"""What an engine is: the seam between the model and whatever runs its graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from phi_edge.errors import ContextLengthError, GenerationCancelled, PromptError
from phi_edge.image.crops import ImageCrops
from phi_edge.package import ModelInfo

if TYPE_CHECKING:
    from typing_extensions import Self

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
    """One sequence, with the keys and values of its tokens cached.

    At the end of a `with` block it goes back to where it came from, and is not to be used again.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, *args: object) -> None: ...

    def lend(self, take_back: Callable[[Run], None]) -> Self:
        """Give the run itself, which goes to `take_back` at the end of the next `with` block."""

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

    @property
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


class Lent:
    """What makes a `Run` go back where it came from, for engines to inherit."""

    _take_back: Callable[[Any], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        take_back, self._take_back = self._take_back, None
        if take_back is not None:
            take_back(self)

    def lend(self, take_back: Callable[[Any], None]) -> Self:
        """See `Run.lend`."""
        self._take_back = take_back
        return self


class Engine(Protocol):
    """Runs the graphs of one package."""

    def encode_image(self, crops: ImageCrops, cancel: threading.Event | None = None) -> Features:
        """float32 [num_tokens, hidden_size]: what takes the place of token embeddings.

        Raises:
            GenerationCancelled: `cancel` was set; see `CancelToken`.
        """

    def begin(self) -> Run:
        """Make a sequence without tokens, to be extended before anything else."""

    def start(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        cancel: threading.Event | None = None,
    ) -> Run:
        """Prefill a sequence, which is lost if that does not come to its end.

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
        rope_limit: int,
    ) -> Run:
        """A run with the keys and values that `Run.rows` gave, to be extended.

        Args:
            input_ids: int64 [num_tokens], the tokens that the rows belong to.
            image_features: As in `start`.
            rows: All that `Run.rows` gave, in its order.
            rope_limit: `ModelInfo.rope_limit` of the run that they are of; a sequence that has
                another is prefilled again.

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


def check_step(model: ModelInfo, run: Run, token_ids: int | Sequence[int]) -> list[int]:
    """Check tokens that are to follow a sequence, and give them as a list; see `Run.append`."""
    step: list[int] = np.atleast_1d(token_ids).tolist()
    for token_id in step:
        if not 0 <= token_id < model.vocab_size:
            raise PromptError(
                f"token id {token_id} is outside the vocabulary of {model.vocab_size}"
            )
    if run.num_tokens + len(step) > model.context_length:
        raise ContextLengthError(run.num_tokens + len(step), model.context_length)
    if not 1 <= len(step) <= run.room:
        raise ValueError(f"a step takes 1 to {run.room} tokens here, not {len(step)}")
    return step


def check_rewind(num_tokens: int, length: int) -> None:
    """Check that a sequence can be cut to its first `num_tokens`; see `Run.rewind`."""
    if not 1 <= num_tokens <= length:
        raise ValueError(f"cannot rewind a sequence of {length} tokens to {num_tokens}")
