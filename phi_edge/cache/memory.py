"""What is kept from one question to the next: image features, and runs with their prefixes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from phi_edge.engine.base import Features, Run
from phi_edge.image.crops import ImageCrops
from phi_edge.text.prompt import Prompt


class FeatureCache:
    """Image features by the digest of their crops' pixels; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._features: OrderedDict[bytes, Features] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, crops: ImageCrops) -> Features | None:
        """Give the features of crops with the same pixels, if they are kept."""
        with self._lock:
            if crops.digest in self._features:
                self._features.move_to_end(crops.digest)
            return self._features.get(crops.digest)

    def put(self, crops: ImageCrops, features: Features) -> None:
        """Keep features, as far as there is room."""
        with self._lock:
            self._features[crops.digest] = features
            self._shrink(self._max_bytes)

    def shrink(self, max_bytes: int) -> int:
        """Keep no more than `max_bytes`, and tell how many are kept."""
        with self._lock:
            return self._shrink(max_bytes)

    def _shrink(self, max_bytes: int) -> int:
        num_bytes = sum(kept.nbytes for kept in self._features.values())
        while self._features and num_bytes > max_bytes:
            num_bytes -= self._features.popitem(last=False)[1].nbytes
        return num_bytes


class _Kept(NamedTuple):
    run: Run
    image_keys: list[tuple[bytes, int]]


class PrefixCache:
    """Runs whose keys and values may serve another prompt that begins as they do.

    A run belongs to one user at a time: it is taken out, and put back when that one is done.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: list[_Kept] = []  # the least recently used first
        self._lock = threading.Lock()

    def take(self, prompt: Prompt) -> Run | None:
        """Take a run out, rewound to what it shares with the prompt, if one is worth it.

        It is when most of what the run holds is of use; a long conversation is not given up for
        another that shares its first sentence.
        """
        image_keys = prompt.image_keys
        with self._lock:
            best, num_best = None, 0
            for kept in self._kept:
                num_common = count_common_tokens(
                    kept.run.input_ids, kept.image_keys, prompt.input_ids, image_keys
                )
                if num_common > num_best and 2 * num_common >= kept.run.num_tokens:
                    best, num_best = kept, num_common
            if best is None:
                return None
            self._kept.remove(best)
        best.run.rewind(num_best)
        return best.run

    def put(self, prompt: Prompt, run: Run) -> None:
        """Keep a run that began with a prompt, as far as there is room."""
        with self._lock:
            self._kept.append(_Kept(run, prompt.image_keys))
            self._shrink(self._max_bytes)

    def shrink(self, max_bytes: int) -> None:
        """Keep no more than `max_bytes`."""
        with self._lock:
            self._shrink(max_bytes)

    def _shrink(self, max_bytes: int) -> None:
        num_bytes = sum(kept.run.num_bytes for kept in self._kept)
        while self._kept and num_bytes > max_bytes:
            num_bytes -= self._kept.pop(0).run.num_bytes


def count_common_tokens(
    first_ids: npt.NDArray[np.int64],
    first_images: Sequence[tuple[bytes, int]],
    second_ids: npt.NDArray[np.int64],
    second_images: Sequence[tuple[bytes, int]],
) -> int:
    """Count the tokens that two sequences begin with alike, image slots by their pixels.

    Ids are int64 [num_tokens], negative ones image slots; the images that fill these are given by
    their `Prompt.image_keys`.
    """
    length = min(len(first_ids), len(second_ids))
    first, second = (np.maximum(ids[:length], -1) for ids in (first_ids, second_ids))
    different = np.flatnonzero(first != second)
    num_common = int(different[0]) if different.size else length
    num_shared_slots = 0
    for one, other in zip(first_images, second_images, strict=False):
        if one != other:
            break
        num_shared_slots += one[1]
    slots = np.flatnonzero(first[:num_common] < 0)
    return int(slots[num_shared_slots]) if len(slots) > num_shared_slots else num_common
