"""Where an ONNX graph says that its weights are, told without ONNX.

ONNX Runtime opens whatever file a graph names, links and `../` included, in 1.23; 1.32 refuses
what is outside the graph's folder. So this is checked before it is given a graph.

A graph is a protobuf message. Of its fields, only those are followed that may lead to a tensor.
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, wire format:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

# Message -> number of a field -> message that is in it.
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "ExternalData"},
}
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 100  # that of protobuf's own parsers


def external_locations(model: bytes) -> set[str]:
    """Find the files that a graph takes tensors from, as it names them.

    Args:
        model: An ONNX file's content.

    Raises:
        ValueError: It is none.
    """
    return set(_locations(memoryview(model), "Model", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError("its messages are nested too deeply")
    if kind == "ExternalData":
        entries = list(_fields(message))
        if (_KEY, b"location") in ((number, bytes(content)) for number, content in entries):
            values = (content for number, content in entries if number == _VALUE)
            yield from (bytes(content).decode(errors="replace") for content in values)
        return
    inner = _FIELDS[kind]
    for number, content in _fields(message):
        if number in inner:
            yield from _locations(content, inner[number], depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Give number and content of the fields that hold bytes: messages and strings."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire_type, number = tag & 7, tag >> 3
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire_type, 0)
        if wire_type in (_VARINT, _BYTES):
            size_or_value, at = _varint(message, at)
            size = size_or_value if wire_type == _BYTES else 0
        elif not size:
            raise ValueError(f"it has a field of wire type {wire_type}")
        if at + size > len(message) or not 0 < number < 2**29:
            raise ValueError("it is no protobuf message")
        if wire_type == _BYTES:
            yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number of variable length, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at == len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it ends in the middle of a number, or has one that is too long")
