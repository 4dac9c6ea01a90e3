"""The keys and values of a sequence, or of several that are equally long."""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phi_edge.engine.base import KeyValues
from phi_edge.engine.session import import_onnxruntime
from phi_edge.errors import OutOfMemoryError
from phi_edge.package import ModelConfig, past_name, present_name

_MIN_CAPACITY = 256


class KeyValueCache:
    """Buffers [batch_size, kv_heads, capacity, head_size], keys and values of each layer.

    Every buffer is the decoder's input and output at once: a step writes its tokens in place
    and nothing is copied. When the context outgrows the buffers they double.

    Attributes:
        capacity: Tokens of each sequence that the buffers hold.
        batch_size: Number of sequences.
    """

    def __init__(
        self, model: ModelConfig, device: str, device_id: int = 0, batch_size: int = 1
    ) -> None:
        self.capacity = 0
        self.batch_size = batch_size
        self._num_touched = 0
        self._model = model
        self._device = device
        self._device_id = device_id
        self._buffers: dict[tuple[int, str], Any] = {}

    def reserve(self, num_tokens: int, num_kept: int) -> bool:
        """Make room for `num_tokens`, keeping the first `num_kept`.

        Returns:
            Whether there are new buffers, which have to be bound.
        """
        if num_tokens <= self.capacity:
            return False
        self._allocate(self._grown(num_tokens), num_kept, range(self.batch_size))
        return True

    def _grown(self, num_tokens: int) -> int:
        """Double the capacity until it holds so many tokens."""
        capacity = max(_MIN_CAPACITY, self.capacity)
        while capacity < num_tokens:
            capacity *= 2
        return min(capacity, self._model.context_length)

    def keep(self, members: Sequence[int], num_tokens: int) -> None:
        """Keep only these sequences, each cut to `num_tokens`. The new buffers have to be bound."""
        self.batch_size = len(members)
        self._allocate(self.capacity, num_tokens, members)

    def _allocate(self, capacity: int, num_kept: int, members: Sequence[int]) -> None:
        """Make new buffers, with the first tokens of some sequences of the old ones."""
        self.capacity = 0  # of some buffers new and some old, if memory ends
        for place in self._places():
            array = self._zeros(self._model.cache_dtype, capacity)
            if num_kept:
                old = self._buffers[place].numpy()
                for place_in_batch, member in enumerate(members):
                    array[place_in_batch, :, :num_kept] = old[member, :, :num_kept]
            self._put(place, array)
        self.capacity = capacity

    def _places(self) -> Iterator[tuple[int, str]]:
        """Layer and part of every buffer."""
        return itertools.product(range(self._model.num_hidden_layers), ("key", "value"))

    def _zeros(self, dtype: str, capacity: int) -> npt.NDArray[Any]:
        model = self._model
        shape = (self.batch_size, model.num_key_value_heads, capacity, model.head_size)
        return _untouched_zeros(shape, dtype)

    def _put(self, place: tuple[int, str], array: npt.NDArray[Any]) -> None:
        value = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._buffers[place] = value(array, self._device, self._device_id)

    def export_kv(self, num_tokens: int) -> Iterator[KeyValues]:
        """Give the keys and values of the first sequence's first tokens."""
        for buffer in self._buffers.values():
            yield buffer.numpy()[0, :, :num_tokens]

    def import_kv(self, key_values: Iterable[KeyValues], num_tokens: int) -> None:
        """Fill an empty cache, all sequences alike, in buffers that are to be bound."""
        self.capacity = self._grown(num_tokens)
        for place, part in zip(self._places(), key_values, strict=True):
            array = self._zeros(part.dtype.name, self.capacity)
            array[:, :, :num_tokens] = part
            self._put(place, array)
        self.note_use(num_tokens)

    def note_use(self, num_tokens: int) -> None:
        """Tell that the first `num_tokens` have been written."""
        self._num_touched = max(self._num_touched, num_tokens)

    @property
    def num_bytes(self) -> int:
        """Memory that the buffers take; pages that were never written to take none."""
        return self.batch_size * self._num_touched * self._model.cache_bytes_per_token

    def bind(self, binding: Any) -> None:
        """Bind every buffer as the decoder's past and present."""
        for (layer, part), buffer in self._buffers.items():
            binding.bind_ortvalue_input(past_name(layer, part), buffer)
            binding.bind_ortvalue_output(present_name(layer, part), buffer)


def _untouched_zeros(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Make zeros in pages of their own, straight from the system.

    Pages take memory only when they are written to, so that unused capacity is free, and go
    back at once when the array is dropped. NumPy's own arrays, once a few large ones were
    dropped, come from the C library's heap, which writes the zeros and keeps what is freed.
    """
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        pages = mmap.mmap(-1, num_bytes)
    except OSError as error:
        raise OutOfMemoryError(f"{num_bytes:,} bytes of a key/value cache: {error}") from None
    return np.frombuffer(pages, dtype).reshape(shape)
