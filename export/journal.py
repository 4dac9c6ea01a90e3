"""What a long export has finished, on disk: one that was interrupted goes on from there."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.generic]

_KEY_FILE = "journal.json"
# Counted up when the contents of records change: those of an older journal would be misread.
_LAYOUT = 2
# Stands in a record's file beside the arrays, whose names end in ".npy" there.
_FACTS_FILE = "facts.json"


class Record(NamedTuple):
    """What is kept under one name.

    Attributes:
        arrays: By their names.
        facts: As JSON has them.
    """

    arrays: dict[str, Array]
    facts: dict[str, Any]


class Journal:
    """Records by name, in a folder that belongs to one job."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        """Open the journal of a job; clear one of another job, or in another layout.

        Args:
            folder: Where it is; made when it is missing.
            job: Whatever the records depend on, as JSON.
        """
        self.folder = folder
        key = json.dumps({"layout": _LAYOUT, "job": job}, sort_keys=True)
        file = folder / _KEY_FILE
        if file.is_file() and file.read_text(encoding="utf-8") == key:
            logger.info("going on with %s", folder)
            return
        self.clear()
        folder.mkdir(parents=True)
        file.write_text(key, encoding="utf-8")

    def store(
        self, name: str, arrays: Mapping[str, Array] = {}, facts: Mapping[str, Any] = {}
    ) -> None:
        """Write a record: all of it or, if that is interrupted, nothing."""
        partial = self.folder / f"{name}.partial.npz"
        named: dict[str, Any] = dict(arrays)
        np.savez(partial, **named)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr(_FACTS_FILE, json.dumps(facts))
        partial.replace(self._file(name))

    def load(self, name: str) -> Record | None:
        """Read a record; None where there is none."""
        file = self._file(name)
        if not file.is_file():
            return None
        with zipfile.ZipFile(file) as archive:
            facts = json.loads(archive.read(_FACTS_FILE))
        with np.load(file) as stored:
            arrays = {key: stored[key] for key in stored.files if key != _FACTS_FILE}
        return Record(arrays, facts)

    def remove(self, name: str) -> None:
        """Forget a record."""
        self._file(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the folder."""
        clear_journal(self.folder)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def clear_journal(folder: Path) -> None:
    """Remove a journal, if there is one."""
    # The key file goes first: without it, the rest is never taken for a journal.
    (folder / _KEY_FILE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
