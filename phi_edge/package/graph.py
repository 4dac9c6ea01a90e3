"""What an ONNX graph says of itself, told without ONNX: inputs, outputs, operators, integers.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from phi_edge.package.protobuf import fields, integers, messages, text

# Numbers of fields, by the message that has them.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR = 1, 3, 5
_TENSOR_DIMS, _TENSOR_DTYPE, _TENSOR_INT64, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 7, 8, 9
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_TYPE_DTYPE, _TENSOR_TYPE_SHAPE = 1, 2, 1, 1, 2
_SHAPE_DIM, _DIM_VALUE = 1, 1

_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 7: "int64", 10: "float16", 16: "bfloat16"}
_INT64 = 7


@dataclasses.dataclass(frozen=True)
class TensorType:
    """Type of an input or output.

    Attributes:
        dtype: NumPy's name of it; "" for one that no package of ours has.
        shape: None where a dimension is not fixed.
    """

    dtype: str
    shape: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Node:
    """An operator: the names of its inputs and outputs, and its attributes that are integers."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph, without those that are inside of its nodes.

    Attributes:
        inputs: Those that a run has to be given; others have a default.
        constants: Integers that the graph has under a name.
    """

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    nodes: tuple[Node, ...]
    constants: Mapping[str, int]


def read_graph(model: bytes | memoryview) -> Graph:
    """Read an ONNX file's content.

    Raises:
        ValueError: It is none.
    """
    inputs: dict[str, TensorType] = {}
    outputs: dict[str, TensorType] = {}
    nodes: list[Node] = []
    constants: dict[str, int] = {}
    defaults: set[str] = set()
    for number, content in _of_graph(memoryview(model)):
        if number == _GRAPH_NODE:
            node, value = _node(content)
            nodes.append(node)
            if value is not None:
                constants.update(dict.fromkeys(node.outputs, value))
        elif number == _GRAPH_INITIALIZER:
            name, value = _tensor(content)
            defaults.add(name)
            if value is not None:
                constants[name] = value
        elif number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            name, kind = _value(content)
            (inputs if number == _GRAPH_INPUT else outputs)[name] = kind
    if not outputs:
        raise ValueError("it has no outputs")
    given = {name: kind for name, kind in inputs.items() if name not in defaults}
    return Graph(given, outputs, tuple(nodes), constants)


def _of_graph(model: memoryview) -> Iterator[tuple[int, memoryview]]:
    for number, content in messages(model):
        if number == _MODEL_GRAPH:
            yield from messages(content)


def _node(message: memoryview) -> tuple[Node, int | None]:
    """Read a node, and the integer that it stands for."""
    op_type, inputs, outputs, value = "", [], [], None
    attributes: dict[str, int] = {}
    for number, content in messages(message):
        if number == _NODE_INPUT:
            inputs.append(text(content))
        elif number == _NODE_OUTPUT:
            outputs.append(text(content))
        elif number == _NODE_OP_TYPE:
            op_type = text(content)
        elif number == _NODE_ATTRIBUTE:
            name, found = _attribute(content)
            if found is not None:
                attributes[name] = found
    if op_type == "Constant" and attributes:
        value = next(iter(attributes.values()))
    return Node(op_type, tuple(inputs), tuple(outputs), attributes), value


def _attribute(message: memoryview) -> tuple[str, int | None]:
    """Read an attribute's name, and its value if it is one integer."""
    name, value = "", None
    for number, content in fields(message):
        if number == _ATTRIBUTE_NAME and isinstance(content, memoryview):
            name = text(content)
        elif number == _ATTRIBUTE_INT and isinstance(content, int):
            value = integers(content)[0]
        elif number == _ATTRIBUTE_TENSOR and isinstance(content, memoryview):
            value = _tensor(content)[1]
    return name, value


def _tensor(message: memoryview) -> tuple[str, int | None]:
    """Read a tensor's name, and its value if it is one int64."""
    name, dtype, size, values = "", 0, 1, []
    for number, content in fields(message):
        if number == _TENSOR_DIMS:
            for dim in integers(content):
                size *= dim
        elif number == _TENSOR_DTYPE and isinstance(content, int):
            dtype = content
        elif number == _TENSOR_INT64:
            values += integers(content)
        elif number == _TENSOR_NAME and isinstance(content, memoryview):
            name = text(content)
        elif number == _TENSOR_RAW and isinstance(content, memoryview) and len(content) == 8:
            values.append(int.from_bytes(content, "little", signed=True))
    is_integer = dtype == _INT64 and size == 1 and len(values) == 1
    return name, values[0] if is_integer else None


def _value(message: memoryview) -> tuple[str, TensorType]:
    """Read an input's or output's name and type."""
    name, dtype = "", 0
    shape: list[int | None] = []
    for number, content in messages(message):
        if number == _VALUE_NAME:
            name = text(content)
        elif number == _VALUE_TYPE:
            for at, inner in fields(_only(content, _TYPE_TENSOR)):
                if at == _TENSOR_TYPE_DTYPE and isinstance(inner, int):
                    dtype = inner
                elif at == _TENSOR_TYPE_SHAPE and isinstance(inner, memoryview):
                    shape = [_dim(dim) for place, dim in messages(inner) if place == _SHAPE_DIM]
    return name, TensorType(_DTYPES.get(dtype, ""), tuple(shape))


def _dim(message: memoryview) -> int | None:
    found = [content for number, content in fields(message) if number == _DIM_VALUE]
    return found[0] if found and isinstance(found[0], int) else None


def _only(message: memoryview, wanted: int) -> memoryview:
    """Find the field of a message that has one."""
    for number, content in messages(message):
        if number == wanted:
            return content
    return memoryview(b"")
