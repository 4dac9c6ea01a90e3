"""A file of arrays that is read back only if it is exactly what was written.

Layout: `MAGIC`, whose last byte is the version; the header's length, 4 bytes little-endian; its
SHA-256; the header, JSON; the arrays, all of one type and shape, in C order; their SHA-256.
Nothing in it is ever executed. It is no signature: whoever can write files as this user can write
this one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

MAGIC = b"PHIEDGE\x01"
TEMPORARY_PREFIX = ".writing-"

_LENGTH_BYTES = 4
_DIGEST_BYTES = hashlib.sha256().digest_size


class DamagedFileError(ValueError):
    """The file is not what was written."""


def write_cache_file(
    path: Path, facts: Mapping[str, Any], arrays: Iterable[npt.NDArray[Any]]
) -> None:
    """Write a file that only this user can read; others see all of it or nothing.

    The facts are JSON that describes the arrays. There is at least one of these; they are taken and
    written one by one. A file that is there is replaced.

    Raises:
        OSError: It cannot be written, for want of room for example.
    """
    # mkstemp's files have mode 0600.
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = hashlib.sha256()
            for index, array in enumerate(arrays):
                if index == 0:
                    _write_header(file, facts, array)
                content = np.ascontiguousarray(array).data.cast("B")
                digest.update(content)
                file.write(content)
            file.write(digest.digest())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _write_header(file: IO[bytes], facts: Mapping[str, Any], first: npt.NDArray[Any]) -> None:
    header = {"facts": facts, "dtype": first.dtype.str, "shape": first.shape}
    encoded = json.dumps(header).encode()
    file.write(MAGIC + len(encoded).to_bytes(_LENGTH_BYTES, "little"))
    file.write(hashlib.sha256(encoded).digest() + encoded)


class CacheFile:
    """A file that is being read; a context manager.

    Attributes:
        facts: What `write_cache_file` was given.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and check its header.

        Raises:
            OSError: It is gone, cannot be read, or is another user's.
            DamagedFileError: It is not what was written, or of another version.
        """
        self._file = path.open("rb")
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def _read_header(self) -> None:
        status = os.fstat(self._file.fileno())
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            raise PermissionError(f"{self._file.name} is the file of another user")
        magic, length, digest = map(self._file.read, (len(MAGIC), _LENGTH_BYTES, _DIGEST_BYTES))
        if magic != MAGIC:
            raise DamagedFileError(f"{self._file.name} does not begin with {MAGIC!r}")
        encoded = self._file.read(int.from_bytes(length, "little"))
        if hashlib.sha256(encoded).digest() != digest:
            raise DamagedFileError(f"{self._file.name}: the header's SHA-256 differs")
        header = json.loads(encoded)
        self.facts: Mapping[str, Any] = header["facts"]
        self._dtype, self._shape = np.dtype(header["dtype"]), tuple(header["shape"])
        if self._dtype.kind not in "fiu":
            raise DamagedFileError(f"{self._file.name} has arrays of type {self._dtype}")
        num_bytes = status.st_size - self._file.tell() - _DIGEST_BYTES
        array_bytes = math.prod(self._shape) * self._dtype.itemsize
        if num_bytes < array_bytes or num_bytes % array_bytes:
            raise DamagedFileError(f"{self._file.name} ends too early")
        self._num_arrays = num_bytes // array_bytes
        self._digest = hashlib.sha256()

    def arrays(self) -> Iterator[npt.NDArray[Any]]:
        """Read the arrays in their order, once. They must not be relied on before `check`."""
        for _ in range(self._num_arrays):
            array = np.empty(self._shape, self._dtype)
            content = array.data.cast("B")
            self._file.readinto(content)
            self._digest.update(content)
            yield array

    def check(self) -> None:
        """Check the arrays, all of which have been read.

        Raises:
            DamagedFileError: They are not what was written.
        """
        if self._file.read() != self._digest.digest():
            raise DamagedFileError(f"{self._file.name}: the SHA-256 of its arrays differs")
