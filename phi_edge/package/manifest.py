"""The format of our own packages: the one contract between the exporter and the runtime.

A package is a folder that holds three ONNX graphs with their weights (and a fourth, where prompts
run on weights of their own), the tokenizer, and two descriptions: `phi_edge.json`, the manifest
that is defined here, and `genai_config.json` with `processor_config.json`, which make the same
folder loadable by onnxruntime-genai (model type `phi3v`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from phi_edge.errors import PackageError, PackageNotFoundError
from phi_edge.package.base import (
    DECODER,
    EMBEDDING,
    PREFILL,
    TOKENIZER_FILE,
    VISION,
    FileEntry,
    ModelConfig,
    Package,
)
from phi_edge.package.external_data import external_locations

FORMAT_VERSION = 2
READER_SUPPORTED_VERSIONS = (2,)

MANIFEST_FILE = "phi_edge.json"

GRAPH_FILES: Mapping[str, str] = {
    VISION: "vision.onnx",
    EMBEDDING: "embedding.onnx",
    DECODER: "decoder.onnx",
    # The prompt graph: the decoder again, with weights that are fast on many tokens at once.
    PREFILL: "prefill.onnx",
}
OPTIONAL_GRAPHS = {PREFILL}

# The decoder picks the short or the long RoPE factors by the larger of this input and the
# number of tokens in the mask. Its default is 0; a prefill in chunks sets it to the length of
# the whole prompt, so that every chunk uses the factors of the whole.
ROPE_LENGTH = "rope_length"
# How many positions before the last the decoder gives logits for, too. Its default is 0.
NUM_EARLIER, EARLIER_LOGITS = "num_earlier", "earlier_logits"

# Files up to this size are hashed at every load; a larger one only when verification is asked
# for, since reading gigabytes would double the time to the first token.
ALWAYS_HASHED_BYTES = 16 * 2**20


def weights_file(role: str) -> str:
    """Name the external data file of the graph with this role."""
    return GRAPH_FILES[role] + ".data"


@dataclasses.dataclass(frozen=True)
class Manifest(Package):
    """Description of a package of our own, stored as `phi_edge.json`.

    Its `name` is the checkpoint's own for the model.

    Attributes:
        recipe: How the weights were quantized, as the quantizer describes it.
        source: Files of the checkpoint with their digests.
        versions: Versions of the software that wrote the package.
    """

    format_version: int
    recipe: Mapping[str, Any]
    source: Mapping[str, FileEntry]
    versions: Mapping[str, str]

    @property
    def layout(self) -> str:
        """How the folder is laid out: by whose conventions."""
        return "phi_edge"

    @property
    def graph_files(self) -> Mapping[str, str]:
        """Files of the graphs by their roles."""
        return {role: file for role, file in GRAPH_FILES.items() if file in self.files}

    def weights_bytes(self, role: str) -> int:
        """Bytes of a graph's weights."""
        return self.files[weights_file(role)].size

    @property
    def source_digest(self) -> str:
        """One SHA-256 over the names and digests of all checkpoint files."""
        lines = [f"{entry.sha256}  {name}\n" for name, entry in sorted(self.source.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the manifest says, the digests of all files included."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def describe_file(path: Path) -> FileEntry:
    """Describe a file by its size and SHA-256, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return FileEntry(path.stat().st_size, digest.hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `phi_edge.json` into a package folder."""
    facts = dataclasses.asdict(manifest)
    facts = {"format_version": facts.pop("format_version"), **facts}  # what a reader looks at first
    text = json.dumps(facts, indent=2) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read a package's manifest.

    Raises:
        PackageNotFoundError: There is no folder, or no manifest in it.
        PackageError: The manifest is damaged or of a format this version does not read.
    """
    path = folder / MANIFEST_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise PackageNotFoundError(
            f"{folder} is not a phi_edge package: it has no {MANIFEST_FILE}. "
            "Make one with `phi-edge export CHECKPOINT OUT`"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PackageError(f"{path} is damaged ({error}): export the package again") from None

    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version not in READER_SUPPORTED_VERSIONS:
        raise PackageError(
            f"{path} has package format {version}, and this version of phi_edge reads "
            f"{', '.join(map(str, READER_SUPPORTED_VERSIONS))}: "
            "update phi_edge or export the package again"
        )
    try:
        return _parse_manifest(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(
            f"{path} is damaged ({type(error).__name__}: {error}): export the package again"
        ) from None


def _parse_manifest(raw: Mapping[str, Any]) -> Manifest:
    fields = {field.name: raw[field.name] for field in dataclasses.fields(Manifest)}
    model: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in raw["model"].items()
    }
    fields["model"] = ModelConfig(**model)
    for key in ("source", "files"):
        fields[key] = {name: FileEntry(**entry) for name, entry in raw[key].items()}
    for name in fields["files"]:
        if Path(name).name != name or "\\" in name:
            raise ValueError(f"file name {name!r} is a path")
    needed = {file for role, file in GRAPH_FILES.items() if role not in OPTIONAL_GRAPHS}
    unlisted = {*needed, TOKENIZER_FILE} - fields["files"].keys()
    if unlisted:
        raise ValueError(f"it does not list {', '.join(sorted(unlisted))}")
    return Manifest(**fields)


def check_files(folder: Path, manifest: Manifest, *, verify: bool = False) -> None:
    """Check that every file is the one that the exporter wrote, and that graphs name no others.

    Sizes are always compared, and the digests of files up to `ALWAYS_HASHED_BYTES`.

    Args:
        folder: The package.
        manifest: Its manifest.
        verify: Compare the digests of the large files too.

    Raises:
        PackageError: Names every file that is missing or was changed, and every graph that takes
            weights from elsewhere.
    """
    problems = list(_file_problems(folder, manifest, verify=verify))
    if problems:
        raise PackageError(
            f"{folder} is not as it was exported: {'; '.join(problems)}. Export the package again"
        )


def _file_problems(folder: Path, manifest: Manifest, *, verify: bool) -> Iterator[str]:
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.resolve().parent != folder.resolve():
            yield f"{name} is a link to a file outside the package"
        elif (size := path.stat().st_size) != entry.size:
            yield f"{name} has {size:,} bytes instead of {entry.size:,}"
        elif (verify or size <= ALWAYS_HASHED_BYTES) and describe_file(path) != entry:
            yield f"{name} was changed (its SHA-256 differs)"
        elif name in GRAPH_FILES.values():
            yield from _graph_problems(path, manifest)


def _graph_problems(path: Path, manifest: Manifest) -> Iterator[str]:
    try:
        locations = external_locations(path.read_bytes())
    except ValueError as error:
        yield f"{path.name} is no ONNX graph ({error})"
        return
    for location in sorted(locations.keys() - manifest.files.keys()):
        yield f"{path.name} takes weights from {location!r}, which is no file of the package"
