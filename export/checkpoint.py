"""A Hugging Face checkpoint folder: found, checked, and read one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from phi_edge import package
from phi_edge.errors import CheckpointError, CheckpointNotFoundError

from .adapter import Adapter
from .config import Phi3VConfig, expected_tensors, read_config, read_json
from .prequantized import check_matrices, read_blocks, read_layout, stored_shapes
from .tensors import StoredTensor, read_header

INDEX_FILE = "model.safetensors.index.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILES = (package.TOKENIZER_FILE, package.TOKENIZER_CONFIG_FILE)

# What a download from the hub brings: no Python files, no pickles.
HUB_PATTERNS = ("*.json", "*.safetensors")

_FLOAT_TYPES = ("BF16", "F16", "F32")
_WORDS = (".qweight", ".qzeros", ".g_idx")


class ImageSettings(NamedTuple):
    """What `preprocessor_config.json` says: most crops by default, and the pixels' mean and std."""

    num_crops: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Checkpoint:
    """A checked checkpoint. Nothing but headers is read until `read` asks for a tensor.

    Attributes:
        folder: Where the files are.
        config: The parsed `config.json`.
        layout: How the decoder's matrices are held when they are quantized already, or None.
        shapes: Shape of every tensor by its official name.
        tensors: Every tensor of the files: those of `shapes`, or what holds a quantized one.
        adapter: What is merged into them, if anything.
    """

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        """Open a local folder and check that it is complete.

        Args:
            folder: The checkpoint.
            adapter: Folder of a LoRA adapter to merge into it.

        Raises:
            CheckpointNotFoundError: There is no such folder.
            CheckpointError: Names everything that is missing, surplus, misshapen or damaged.
        """
        if not folder.is_dir():
            raise CheckpointNotFoundError(f"there is no checkpoint folder at {folder}")
        self.folder = folder
        self.config: Phi3VConfig = read_config(folder)
        self.preprocessor = read_json(folder / PREPROCESSOR_FILE)
        missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} has no {' and no '.join(missing)}: "
                "download the checkpoint's tokenizer files too"
            )
        self.tensors: Mapping[str, StoredTensor] = {
            name: stored
            for file in _weight_files(folder)
            for name, stored in read_header(file).items()
        }
        self.shapes = expected_tensors(self.config)
        self.layout = read_layout(folder)
        if self.layout and adapter:
            raise CheckpointError(
                f"{folder} has quantized weights, into which no adapter can be merged: "
                "merge it into the original ones"
            )
        expected = stored_shapes(self.layout, self.shapes, self.tensors)
        _check_tensors(folder, self.tensors, expected)
        if self.layout:
            check_matrices(self.layout, self.shapes, self.tensors)
        self.adapter = Adapter(adapter, self.tensors) if adapter else None

    @property
    def files(self) -> list[Path]:
        """The files that the package is made from."""
        names = {"config.json", PREPROCESSOR_FILE, *TOKENIZER_FILES, *_OPTIONAL_FILES}
        present = [path for name in sorted(names) if (path := self.folder / name).is_file()]
        weights = sorted({stored.file for stored in self.tensors.values()})
        return [*present, *weights, *(self.adapter.files if self.adapter else ())]

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Read one tensor, merged with its part of the adapter.

        Returns:
            Its stored type (bfloat16, float16 or float32), or float32 where it is quantized or the
            adapter changes it.

        Raises:
            CheckpointError: It cannot be read.
        """
        if self.layout and name not in self.tensors:
            return read_blocks(self.layout, name, self.tensors).dequantize(self.layout.bits)
        tensor = self.tensors[name].read()
        return self.adapter.merge(name, tensor) if self.adapter else tensor

    def read_tokenizer(self) -> Tokenizer:
        """Read the tokenizer.

        Raises:
            CheckpointError: It cannot be read.
        """
        file = self.folder / package.TOKENIZER_FILE
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception
            raise CheckpointError(f"{file} cannot be read: {error}") from None

    def image_settings(self) -> ImageSettings:
        """Read how images are preprocessed.

        Raises:
            CheckpointError: `preprocessor_config.json` does not say it.
        """
        try:
            return ImageSettings(
                num_crops=int(self.preprocessor["num_crops"]),
                mean=_rgb(self.preprocessor["image_mean"]),
                std=_rgb(self.preprocessor["image_std"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder / PREPROCESSOR_FILE} is incomplete ({type(error).__name__}: {error})"
            ) from None


def _rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


_OPTIONAL_FILES = (INDEX_FILE, "generation_config.json")


def find_checkpoint(name: str) -> Path:
    """Find the folder of a checkpoint by its local path or hub name ("org/model").

    A hub name is looked up in the local Hugging Face cache, and downloaded when it is not there
    and the network allows it.

    Raises:
        CheckpointNotFoundError: There is neither such a folder nor such a model.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointNotFoundError(f"there is no checkpoint folder at {name}")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise CheckpointNotFoundError(
            f"there is no folder {name}; to read it as a model name on the Hugging Face hub, "
            "run `pip install 'phi-edge[hub]'`"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_PATTERNS)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointNotFoundError(
            f"there is no folder {name}, and the Hugging Face hub did not give it: {reason}"
        ) from None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map")
        names = sorted(set(map(str, weight_map.values())))
        bad = [name for name in names if Path(name).name != name]
        missing = [name for name in names if not (folder / name).is_file()]
        if bad or missing:
            raise CheckpointError(f"{index} names files that are not there: {bad or missing}")
        return [folder / name for name in names]

    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt"))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights as pickle files ({', '.join(pickles)}), which can run code "
            "when they are opened and are refused: convert them to safetensors first"
        )
    raise CheckpointError(f"{folder} has no *.safetensors files")


def _check_tensors(
    folder: Path, found: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    problems = [f"missing: {name} {list(expected[name])}" for name in expected.keys() - found]
    problems += [f"not known: {name}" for name in found.keys() - expected]
    for name in expected.keys() & found.keys():
        stored = found[name]
        if stored.shape != expected[name]:
            problems.append(
                f"wrong shape: {name} is {list(stored.shape)} instead of {list(expected[name])}"
            )
        types = ("I32",) if name.endswith(_WORDS) else _FLOAT_TYPES
        if stored.dtype not in types:
            problems.append(f"wrong type: {name} is {stored.dtype} instead of {' or '.join(types)}")
    if problems:
        raise CheckpointError(
            f"the tensors in {folder} are not those that its config.json describes: "
            + "; ".join(sorted(problems))
        )
