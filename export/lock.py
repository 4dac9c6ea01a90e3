"""One process at a time: a lock that the operating system frees when its holder dies."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from phi_edge.errors import PackageError

logger = logging.getLogger(__name__)


@contextmanager
def hold(target: Path) -> Iterator[None]:
    """Keep others from working on a target, by a lock on `.NAME.lock` beside it.

    Args:
        target: What is worked on. It need not exist; the folder that it is in is made.

    Raises:
        PackageError: Somebody else holds it; says who.
        OSError: The lock's file cannot be made.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.lock")
    file = _open_locked(path, target)
    try:
        file.truncate(0)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {platform.node()}, since {now}".encode())
        file.flush()
        yield
    finally:
        if sys.platform == "win32":  # where an open file cannot be removed
            file.close()
            with contextlib.suppress(OSError):
                path.unlink()
        else:  # as long as it is held: afterwards, it may be another's
            path.unlink(missing_ok=True)
            file.close()


def _open_locked(path: Path, target: Path) -> IO[bytes]:
    while True:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("a+b"))
            if not _lock(file):
                file.seek(0)
                holder = file.read().decode(errors="replace") or "another process"
                raise PackageError(
                    f"{target} is in use by {holder}: wait until it is done, or choose another "
                    "folder"
                )
            # The one before may have removed the file after it was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    stack.pop_all()
                    return file


if sys.platform == "win32":
    import msvcrt

    # Locked bytes cannot be read, so those of the holder's name are not.
    _FAR_BEHIND = 2**20

    def _lock(file: IO[bytes]) -> bool:
        """Lock a file, or tell that another does."""
        file.seek(_FAR_BEHIND)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        """Lock a file, or tell that another does."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # some network file systems have no locks
            logger.warning("no lock on %s (%s): see that nothing else uses it", file.name, error)
        return True
