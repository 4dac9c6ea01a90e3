"""Where a package is put: there is an old one, none, or a new one, and never a part of one.

While a target `out` is exported, there are beside it:

- `.out.lock`, the lock of one export;
- `.out.calibration`, the journal of calibration;
- `.out.partial`, which the new package is written to;
- `.out.replaced`, the old package, while the two change places.

The functions here are for the holder of the lock.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phi_edge import package
from phi_edge.errors import PackageError

logger = logging.getLogger(__name__)


def beside(target: Path, kind: str) -> Path:
    """Name the hidden path of a kind that belongs to a target."""
    target = target.resolve()
    return target.with_name(f".{target.name}.{kind}")


def clear_up(target: Path) -> None:
    """Put right what an export left that was killed."""
    partial, replaced = beside(target, "partial"), beside(target, "replaced")
    # Only between the two renames are both there and no target. A replaced package that is there
    # alone may have lost files already, and what took its place was deleted since.
    if replaced.exists() and partial.exists() and not target.exists():
        logger.info("%s is put back: the export that was to replace it was interrupted", target)
        replaced.rename(target.resolve())
    for leftover in (replaced, partial):
        if leftover.exists():
            logger.info("removing %s, left by an export that was interrupted", leftover)
            shutil.rmtree(leftover)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that is not to be replaced.

    Raises:
        PackageError: It is there, and is no package or `overwrite` was not given.
    """
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not overwrite:
        raise PackageError(f"{target} exists: choose another folder, or pass --overwrite")
    if not (target / package.MANIFEST_FILE).is_file():
        raise PackageError(f"{target} exists and is not a package, so it is not overwritten")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Make a folder to write into, which takes the target's place if all goes well."""
    partial, replaced = beside(target, "partial"), beside(target, "replaced")
    target = target.resolve()
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    finally:
        # Whatever went wrong, and wherever: `clear_up` counts on the target's being back first.
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
