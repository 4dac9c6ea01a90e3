"""What a long export has finished, on disk: one that was interrupted goes on from there."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.generic]

_KEY_FILE = "journal.json"


class Journal:
    """Groups of arrays by name, in a folder that belongs to one job."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        """Open the journal of a job; one of another job is cleared.

        Args:
            folder: Where it is; made when it is missing.
            job: Whatever the arrays depend on, as JSON.
        """
        self.folder = folder
        key = json.dumps(job, sort_keys=True)
        file = folder / _KEY_FILE
        if file.is_file() and file.read_text(encoding="utf-8") == key:
            logger.info("going on with %s", folder)
            return
        self.clear()
        folder.mkdir(parents=True)
        file.write_text(key, encoding="utf-8")

    def store(self, name: str, arrays: Mapping[str, Array]) -> None:
        """Write a group of arrays, each by its key."""
        partial = self.folder / f"{name}.partial.npz"
        named: dict[str, Any] = dict(arrays)
        np.savez(partial, **named)
        partial.replace(self._file(name))

    def load(self, name: str) -> dict[str, Array] | None:
        """A group, or None where there is none."""
        if not self._file(name).is_file():
            return None
        with np.load(self._file(name)) as arrays:
            return dict(arrays.items())

    def remove(self, name: str) -> None:
        """Forget a group."""
        self._file(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the folder."""
        clear_journal(self.folder)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def clear_journal(folder: Path) -> None:
    """Remove a journal, if there is one."""
    # First what makes it one: where this is interrupted, the rest must not be taken for a whole.
    (folder / _KEY_FILE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
