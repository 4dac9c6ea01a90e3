"""Graphs that name files of others: they are found, in whatever form, before they are opened."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx.helper import make_function, make_graph, make_model, make_node

import phi_edge
from phi_edge import PackageError, package
from phi_edge.package.external_data import external_locations

from .helpers.packages import edit_manifest


def external(location: str) -> onnx.TensorProto:
    """A tensor that is in another file."""
    tensor = onnx.TensorProto(name="weight", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph_of(nodes: Sequence[onnx.NodeProto] = (), **tensors: Any) -> onnx.GraphProto:
    return make_graph(nodes, "graph", [], [], **tensors)


def in_attribute(**attributes: Any) -> onnx.ModelProto:
    return make_model(graph_of([make_node("X", [], ["y"], **attributes)]))


TENSOR = external("../secret")
SPARSE = onnx.SparseTensorProto(values=TENSOR, dims=[9])
GRAPH = graph_of(initializer=[TENSOR])
FUNCTION = make_function("own", "F", [], ["y"], [make_node("X", [], ["y"], value=TENSOR)], [])


@pytest.mark.parametrize(
    "model",
    [
        make_model(GRAPH),
        make_model(graph_of(sparse_initializer=[SPARSE])),
        in_attribute(value=TENSOR),
        in_attribute(values=[external("decoder.onnx.data"), TENSOR]),
        in_attribute(value=SPARSE),
        in_attribute(values=[SPARSE]),
        in_attribute(then_branch=GRAPH),
        in_attribute(branches=[graph_of(), GRAPH]),
        in_attribute(then_branch=in_attribute(body=GRAPH).graph),
        make_model(graph_of(), functions=[FUNCTION]),
        onnx.ModelProto(training_info=[onnx.TrainingInfoProto(algorithm=GRAPH)]),
    ],
)
def test_weights_are_found_wherever_a_graph_has_them(model: onnx.ModelProto) -> None:
    assert "../secret" in external_locations(model.SerializeToString())


def put_graph(folder: Path, graph: bytes) -> None:
    """Give a package another decoder, and a manifest that lists it."""
    (folder / "decoder.onnx").write_bytes(graph)
    entry = dataclasses.asdict(package.describe_file(folder / "decoder.onnx"))
    edit_manifest(folder, lambda manifest: manifest["files"].update({"decoder.onnx": entry}))


def test_a_graph_with_weights_from_elsewhere_is_refused(package_copy: Path) -> None:
    """Though all digests fit: whoever writes a package writes them too. Nothing is opened:
    ONNX Runtime's own error would be another.
    """
    (package_copy / "unlisted").write_bytes(bytes(16))
    for location in ("../x", "a/../../x", "/etc/passwd", "..\\x", "./vision.onnx", "", "unlisted"):
        graph = graph_of(initializer=[external(location)])
        put_graph(package_copy, make_model(graph).SerializeToString())
        said = f"decoder.onnx takes weights from {location!r}, which is no file of the package"
        with pytest.raises(PackageError, match=re.escape(said)):
            phi_edge.load_model(package_copy)
    put_graph(package_copy, b"no graph")
    with pytest.raises(PackageError, match=r"decoder\.onnx is no ONNX graph"):
        phi_edge.load_model(package_copy)


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that is shorter than 2^14 bytes."""
    length = bytes([len(content) & 127 | 128, len(content) >> 7])
    return bytes([number << 3 | 2]) + length + content


@pytest.mark.parametrize(
    "entry",
    [
        b"\x12\x06secret\x0a\x08location",  # the value first
        b"\x0a\x06offset\x12\x06secret\x0a\x08location",  # another key before
        b"\x0a\x88\x80\x00location\x12\x06secret",  # a length in three bytes
        b"\x8a\x80\x00\x08location\x12\x06secret",  # a tag in three bytes
        b"\x18\x05\x0a\x08location\x25\x00\x00\x00\x00\x12\x06secret",  # among unknown fields
    ],
)
def test_an_unusual_encoding_hides_no_location(entry: bytes) -> None:
    """Protobuf's own reader takes all of these."""
    model = field(7, field(5, field(13, entry)))
    parsed = onnx.ModelProto.FromString(model).graph.initializer[0].external_data[0]
    assert (parsed.key, parsed.value) == ("location", "secret")
    assert external_locations(model) == {"secret": 0}


NESTED = b""
for _ in range(40):
    NESTED = field(1, field(5, field(6, NESTED)))


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (b"\x3a\x05\x00", "no protobuf"),  # longer than the file
        (b"\x39\x00", "no protobuf"),
        (b"\x00\x00", "no protobuf"),  # field 0
        # A number above 2^29, of which some readers drop bits.
        (b"\xba\x80\x80\x80\x10\x00", "no protobuf"),
        (b"\x3b\x3c", "wire type 3"),  # a group, which ONNX has not
        (b"\x3a\x80", "in the middle of a number"),
        (b"\x3a" + b"\x80" * 10 + b"\x01", "too long"),
        (field(7, NESTED), "nested too deeply"),
    ],
)
def test_what_is_no_graph_is_refused(graph: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        external_locations(graph)
