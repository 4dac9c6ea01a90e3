"""Tensors in safetensors files, known by their headers and read one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401 - teaches NumPy the name "bfloat16", which safetensors asks for
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from phi_edge.errors import CheckpointError


class StoredTensor(NamedTuple):
    """Where a tensor is: its file and its name there, its shape and its safetensors type name."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> npt.NDArray[np.generic]:
        """Read the tensor in its stored type (bfloat16, float16 or float32).

        The file is opened for this tensor alone: a mapping kept open would count every page
        ever read as resident memory.

        Raises:
            CheckpointError: It cannot be read.
        """
        try:
            with safe_open(self.file, framework="np") as reader:
                tensor: npt.NDArray[np.generic] = reader.get_tensor(self.name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.file}: {self.name} cannot be read: {error}") from None
        return tensor


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a file, by their names.

    Raises:
        CheckpointError: The file is no safetensors file, or not a whole one.
    """
    tensors = {}
    try:
        with safe_open(file, framework="np") as reader:
            for name in reader.keys():  # noqa: SIM118 - the reader is not a mapping
                part = reader.get_slice(name)
                tensors[name] = StoredTensor(file, name, tuple(part.get_shape()), part.get_dtype())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}): download it again"
        ) from None
    return tensors
