"""Where an ONNX graph says that its weights are, told without ONNX.

ONNX Runtime opens whatever file a graph names, links and `../` included, in 1.23; 1.32 refuses
what is outside the graph's folder. So this is checked before it is given a graph.

A graph is a protobuf message. Of its fields, only those are followed that may lead to a tensor.
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from phi_edge.package.protobuf import messages, text

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
}
# Of a tensor, and of each of these.
_EXTERNAL_DATA = 13
_KEY, _VALUE = 1, 2
_MAX_DEPTH = 100  # that of protobuf's own parsers


def external_locations(model: bytes | memoryview) -> dict[str, int]:
    """Find the files that a graph takes tensors from, as it names them.

    Args:
        model: An ONNX file's content.

    Returns:
        Bytes that each file has to have, as far as the graph tells.

    Raises:
        ValueError: It is none.
    """
    found: dict[str, int] = {}
    for location, end in _locations(memoryview(model), "Model", 0):
        found[location] = max(end, found.get(location, 0))
    return found


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[tuple[str, int]]:
    if depth > _MAX_DEPTH:
        raise ValueError("its messages are nested too deeply")
    if kind == "Tensor":
        yield from _tensor_locations(message)
        return
    inner = _FIELDS[kind]
    for number, content in messages(message):
        if number in inner:
            yield from _locations(content, inner[number], depth + 1)


def _tensor_locations(tensor: memoryview) -> Iterator[tuple[str, int]]:
    """Give every location, if there are several too: readers differ in which one they take."""
    locations: list[str] = []
    end = 0
    for number, content in messages(tensor):
        if number == _EXTERNAL_DATA:
            entry = {inner: text(value) for inner, value in messages(content)}
            key, value = entry.get(_KEY, ""), entry.get(_VALUE, "")
            if key == "location":
                locations.append(value)
            elif key in ("offset", "length"):
                end += int(value)
    for location in locations:
        yield location, end
