"""What is kept on disk between processes: image features, and the keys and values of prompts.

The files hold what images and prompts say, in a form that can be turned back into much of it.
They are readable by their owner alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from phi_edge.cache.file import TEMPORARY_PREFIX, CacheFile, write_cache_file
from phi_edge.cache.memory import count_common_tokens
from phi_edge.engine.base import Engine, Features, Run
from phi_edge.image.crops import ImageCrops
from phi_edge.package import Package
from phi_edge.text.prompt import Prompt

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

MAX_DISK_CACHE_BYTES = 8 * 2**30

_FEATURES, _RUN = ".features", ".run"
# A shorter prompt is prefilled in one chunk, which takes hardly longer than reading a file.
_MIN_TOKENS = 128
# A prompt is written down if files lack more than this part of it: the next questions about a
# document make no files of their own.
_MIN_NEW_PART = 0.25
# A process that is still writing after so long was killed.
_ABANDONED_SECONDS = 3600


class DiskCache:
    """A folder of files that any number of processes may share.

    Each file is bound to a package (by the digest of its manifest) and a provider. It is checked
    as a whole when it is used; a damaged one is removed, and is as if it had never been there.
    The least recently used go first. A cache that cannot be read or written costs time only.
    """

    def __init__(
        self, folder: Path, manifest: Package, provider: str, max_bytes: int = MAX_DISK_CACHE_BYTES
    ) -> None:
        """Use a folder, which is made if it is not there, and which every package may use.

        The provider is what the engine runs on. All files of the folder together, whoever wrote
        them, take at most `max_bytes`.

        Raises:
            OSError: The folder cannot be made.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_bytes
        self._model = manifest.model
        self._binding = {
            "package": manifest.digest,
            "provider": provider,
            "dtype": manifest.model.io_dtype,
        }
        self._prefix = _digest(self._binding)[:16]

    def load_features(self, crops: ImageCrops) -> Features | None:
        """Load the features of crops with the same pixels, if they are kept."""
        facts = self._features_facts(crops)

        def read(file: CacheFile) -> Features | None:
            (features,) = file.arrays()
            file.check()
            return np.asarray(features, np.float32) if file.facts == facts else None

        return self._use(self._path(facts, _FEATURES), read)

    def save_features(self, crops: ImageCrops, features: Features) -> None:
        """Keep features."""
        facts = self._features_facts(crops)
        self._write(self._path(facts, _FEATURES), facts, [features])

    def _features_facts(self, crops: ImageCrops) -> dict[str, str]:
        return {**self._binding, "pixels": crops.digest.hex()}

    def load_run(self, prompt: Prompt, features: Features, engine: Engine) -> Run | None:
        """Restore a run of what the prompt shares with a kept one, if there is such a one.

        The features are those of all images of the prompt, to which the run is to be extended.
        """
        path, num_common = self._find(prompt)
        if path is None or num_common < _MIN_TOKENS:
            return None
        ids = prompt.input_ids[:num_common]
        known_features = features[: np.count_nonzero(ids < 0)]

        def read(file: CacheFile) -> Run | None:
            if self._count_common(file, prompt) < num_common:
                return None  # it was replaced since
            key_values = (part[:, :num_common] for part in file.arrays())
            run = engine.restore(ids, known_features, key_values, self._rope_limit(prompt))
            file.check()
            return run

        return self._use(path, read)

    def save_run(self, prompt: Prompt, run: Run) -> None:
        """Keep the keys and values of a prompt that a run began with, if it pays."""
        num_new = prompt.num_tokens - self._find(prompt)[1]
        is_changed = self._rope_limit(run) != self._rope_limit(prompt)
        if (
            prompt.num_tokens < _MIN_TOKENS
            or num_new <= _MIN_NEW_PART * prompt.num_tokens
            or is_changed  # the answer went on with the other RoPE factors
            or run.num_bytes > self._max_bytes
        ):
            return
        facts = {
            **self._binding,
            # All slots alike: which image fills them is told by the digests.
            "input_ids": np.maximum(prompt.input_ids, -1).tolist(),
            "images": [(digest.hex(), size) for digest, size in prompt.image_keys],
        }
        self._write(self._path(facts, _RUN), facts, run.export_kv(prompt.num_tokens))

    def _find(self, prompt: Prompt) -> tuple[Path | None, int]:
        """Find the file that shares most tokens with a prompt, and how many."""
        best, num_best = None, 0
        for path in self._folder.glob(f"{self._prefix}-*{_RUN}"):
            num_common = self._read(path, lambda file: self._count_common(file, prompt)) or 0
            if num_common > num_best:
                best, num_best = path, num_common
        return best, num_best

    def _count_common(self, file: CacheFile, prompt: Prompt) -> int:
        facts = file.facts
        ids = np.array(facts["input_ids"], np.int64)
        is_other = any(facts[name] != value for name, value in self._binding.items())
        if is_other or self._rope_limit(Prompt(ids)) != self._rope_limit(prompt):
            return 0
        images = [(bytes.fromhex(sha256), size) for sha256, size in facts["images"]]
        return count_common_tokens(ids, images, prompt.input_ids, prompt.image_keys)

    def _rope_limit(self, sequence: Prompt | Run) -> int:
        """Tell the RoPE factors of a sequence, and so its keys, from others."""
        return self._model.rope_limit(sequence.num_tokens)

    def _path(self, facts: Mapping[str, Any], suffix: str) -> Path:
        return self._folder / f"{self._prefix}-{_digest(facts)}{suffix}"

    def _use(self, path: Path, use: Callable[[CacheFile], _T]) -> _T | None:
        """Read a file, which is then the most recently used."""
        found = self._read(path, use)
        if found is not None:
            with contextlib.suppress(OSError):
                os.utime(path)
        return found

    def _read(self, path: Path, use: Callable[[CacheFile], _T]) -> _T | None:
        """Give what `use` makes of a file; None if anything is wrong with it."""
        try:
            with CacheFile(path) as file:
                return use(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("the disk cache cannot be read: %s", error)
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("removing a damaged file of the disk cache: %s", error)
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def _write(
        self, path: Path, facts: Mapping[str, Any], arrays: Iterable[npt.NDArray[Any]]
    ) -> None:
        try:
            write_cache_file(path, facts, arrays)
            self._make_room()
        except OSError as error:
            logger.warning("the disk cache cannot be written: %s", error)

    def _make_room(self) -> None:
        """Remove the least recently used files, and what killed processes left."""
        files = []
        too_old = time.time() - _ABANDONED_SECONDS
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                status = path.stat()
                if path.suffix in (_FEATURES, _RUN):
                    files.append((status.st_mtime_ns, status.st_size, path))
                elif path.name.startswith(TEMPORARY_PREFIX) and status.st_mtime < too_old:
                    path.unlink()
        excess = sum(size for _, size, _ in files) - self._max_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
