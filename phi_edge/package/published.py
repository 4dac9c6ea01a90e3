"""Packages that others have published, as they are.

They were not made for this runtime. What it has to know beyond their configurations is read from
the graphs, and those that it does not know are refused (`known_graphs`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from phi_edge.errors import PackageError, PackageNotFoundError
from phi_edge.package.base import (
    DECODER,
    EMBEDDING,
    IMAGE_FEATURES,
    PIXEL_VALUES,
    TOKENIZER_FILE,
    VISION,
    FileEntry,
    ModelConfig,
    Package,
)
from phi_edge.package.download import known_sha256
from phi_edge.package.external_data import external_locations
from phi_edge.package.graph import Graph, Node, read_graph
from phi_edge.package.known_graphs import check_graphs
from phi_edge.package.layouts import (
    FIRST_GENAI_LAYOUT,
    GENAI_LAYOUT,
    find_config,
    read_layout,
)

_LFS_POINTER = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class PublishedPackage(Package):
    """A package that is described by its own files.

    Attributes:
        kind: The layout.
        graphs: Files of the graphs by their roles.
        data: Files that hold a graph's weights, by its role.
        times: When each file was changed last, in nanoseconds.
        rope_input: The decoder's input that tells which RoPE factors apply, by the length of the
            attention mask or the last of the position ids; empty if it has one set of factors.
        merges_features: Whether the embedding graph puts image features in their places.
        min_crops: Crops of an image that the vision graph has to be given, empty ones included; 0
            where it takes any number.
        accuracy_levels: How the decoder multiplies, as `MatMulNBits` has it: 4 is in 8 bits.
    """

    kind: str
    graphs: Mapping[str, str]
    data: Mapping[str, tuple[str, ...]]
    times: Mapping[str, int]
    rope_input: str
    merges_features: bool
    min_crops: int
    accuracy_levels: frozenset[int]

    @property
    def layout(self) -> str:
        """How the folder is laid out: by whose conventions."""
        return self.kind

    @property
    def graph_files(self) -> Mapping[str, str]:
        """Files of the graphs by their roles."""
        return self.graphs

    def weights_bytes(self, role: str) -> int:
        """Bytes of a graph and its weights; it may hold some of them itself."""
        return sum(self.files[name].size for name in (self.graphs[role], *self.data[role]))

    @property
    def digest(self) -> str:
        """SHA-256 of what is known of all files unread: gigabytes would take too long."""
        facts = [
            (name, entry.size, entry.sha256, self.times[name]) for name, entry in self.files.items()
        ]
        return hashlib.sha256(json.dumps(sorted(facts)).encode()).hexdigest()


def read_published(folder: Path) -> PublishedPackage:
    """Describe a package that others have published.

    Raises:
        PackageNotFoundError: There is none.
        PackageError: It is damaged or not whole, or is not of this model, or has graphs that are
            not known here.
    """
    config = find_config(folder)
    if config is None:
        raise PackageNotFoundError(f"{folder} is no package that others have published")
    layout = read_layout(config)
    graphs, data = {}, {}
    for role, name in layout.graphs.items():
        graphs[role], data[role] = _read_graph(folder, name)
    vision, embedding, decoder = graphs[VISION], graphs[EMBEDDING], graphs[DECODER]
    model, rope_input = check_graphs(layout, vision, embedding, decoder)
    min_crops = vision.inputs[PIXEL_VALUES].shape[1:2]
    names = [*layout.graphs.values(), *(name for part in data.values() for name in part)]
    names += [name for name in (*layout.configs, TOKENIZER_FILE) if (folder / name).is_file()]
    paths = {name: folder / name for name in dict.fromkeys(names)}
    status = {name: path.stat() for name, path in paths.items()}
    merges_features = IMAGE_FEATURES in embedding.inputs
    is_first = layout.kind == GENAI_LAYOUT and not merges_features
    return PublishedPackage(
        layout.name,
        layout.built_for or _guess_provider(model),
        _precision(decoder, model),
        model,
        {name: FileEntry(status[name].st_size, known_sha256(path)) for name, path in paths.items()},
        FIRST_GENAI_LAYOUT if is_first else layout.kind,
        layout.graphs,
        data,
        {name: each.st_mtime_ns for name, each in status.items()},
        rope_input,
        merges_features,
        (min_crops[0] if min_crops else None) or 0,
        frozenset(node.attributes.get("accuracy_level", 0) for node in _quantized(decoder)),
    )


def _read_graph(folder: Path, name: str) -> tuple[Graph, tuple[str, ...]]:
    """Read a graph, and find the files of its weights, as the folder names them."""
    path = folder / name
    _check_file(path, 1, path)
    try:
        with path.open("rb") as file:
            # Closed with the last view of it, which an error may keep.
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        graph, locations = read_graph(content), external_locations(content)
    except ValueError as error:
        raise PackageError(f"{path} is no ONNX graph ({error}): fetch it again") from None
    for location, num_bytes in locations.items():
        if not location or Path(location).name != location or "\\" in location:
            raise PackageError(f"{path} takes weights from outside its folder: {location!r}")
        _check_file(path.with_name(location), num_bytes, path)
    parent = Path(name).parent
    return graph, tuple((parent / location).as_posix() for location in sorted(locations))


def _check_file(path: Path, num_bytes: int, graph: Path) -> None:
    """Check that a file of a graph is there, as a whole, and belongs to it.

    In the Hugging Face cache it is a link, which leads to the same folder as the graph's.
    """
    if not path.is_file():
        raise PackageError(f"{path} is missing: fetch it again")
    if path.resolve().parent not in (graph.parent.resolve(), graph.resolve().parent):
        raise PackageError(f"{path} is a link that leads elsewhere than {graph.name}")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise PackageError(f"{path} only says where the file is: run `git lfs pull`")
    if (size := path.stat().st_size) < num_bytes:
        raise PackageError(
            f"{path} has {size:,} bytes and should have at least {num_bytes:,}: fetch it again"
        )


def _quantized(graph: Graph) -> Iterator[Node]:
    return (node for node in graph.nodes if node.op_type in ("MatMulNBits", "MatMulBnb4"))


def _guess_provider(model: ModelConfig) -> str:
    """Tell what a package is for that does not say so: GPUs have float16.

    The same graphs are for CUDA and for DirectML, which most have on Windows.
    """
    if model.io_dtype == "float32":
        return "cpu"
    return "dml" if sys.platform == "win32" else "cuda"


def _precision(graph: Graph, model: ModelConfig) -> str:
    if any(_quantized(graph)):
        return "int4"
    return "fp16" if model.io_dtype == "float16" else "fp32"
