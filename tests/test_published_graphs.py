"""What an ONNX graph says, read without ONNX, and the graphs of others that are not known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.helper import make_graph, make_model, make_node, make_tensor, make_tensor_value_info

import phi_edge
from phi_edge import Prompt, package
from phi_edge.package import DECODER, EMBEDDING, VISION, PublishedPackage
from phi_edge.package.external_data import external_locations
from phi_edge.package.graph import Node, TensorType, read_graph

from .helpers.published import (
    BOUNDARY,
    CONTEXT,
    CPU,
    FOLDER,
    GPU,
    check_refused,
    copy_published,
    edit_decoder,
    edit_graph,
    edit_model,
    graph_file,
)
from .helpers.sequences import greedy_tokens, random_ids

INT64, INT32, FLOAT = onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.FLOAT


# What is read


def types(values: Iterable[onnx.ValueInfoProto]) -> dict[str, TensorType]:
    """Names and types, as the package onnx reads them."""
    found = {}
    for value in values:
        kind = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        found[value.name] = TensorType(dtype, tuple(dims))
    return found


def integer(tensor: onnx.TensorProto) -> int | None:
    """A tensor's value, if it is one int64."""
    is_one = tensor.data_type == INT64 and np.prod(tensor.dims) == 1
    return int(onnx.numpy_helper.to_array(tensor).item()) if is_one else None


def integers(node: onnx.NodeProto) -> dict[str, int]:
    """Those of a node's attributes that are one integer."""
    found = {
        each.name: each.i if each.type == onnx.AttributeProto.INT else integer(each.t)
        for each in node.attribute
        if each.type in (onnx.AttributeProto.INT, onnx.AttributeProto.TENSOR)
    }
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/*.onnx")), ids=lambda path: path.name)
def test_graphs_are_read_as_onnx_reads_them(path: Path) -> None:
    found = read_graph(path.read_bytes())
    expected = onnx.load(path, load_external_data=False).graph
    defaults = {tensor.name for tensor in expected.initializer}
    assert found.inputs == types(value for value in expected.input if value.name not in defaults)
    assert found.outputs == types(expected.output)
    nodes = [
        Node(node.op_type, tuple(node.input), tuple(node.output), integers(node))
        for node in expected.node
    ]
    assert list(found.nodes) == nodes
    constants = [(tensor.name, integer(tensor)) for tensor in expected.initializer]
    constants += [
        (node.outputs[0], node.attributes.get("value"))
        for node in nodes
        if node.op_type == "Constant"
    ]
    assert found.constants == {name: value for name, value in constants if value is not None}


SMALL = make_model(
    make_graph(
        [
            make_node("Constant", [], ["five"], value=make_tensor("", INT64, [], [5])),
            make_node("Constant", [], ["seven"], value_int=7),
            make_node("Constant", [], ["half"], value=make_tensor("", FLOAT, [], [0.5])),
            make_node("Constant", [], ["text"], value_string="5"),
            make_node("Add", ["x", "weight"], ["y"]),
        ],
        "graph",
        [
            make_tensor_value_info("x", FLOAT, ["batch", 4, None]),
            make_tensor_value_info("weight", FLOAT, [4]),
            make_tensor_value_info("unknown", onnx.TensorProto.STRING, None),
        ],
        [make_tensor_value_info("y", onnx.TensorProto.FLOAT16, [])],
        [
            make_tensor("weight", FLOAT, [4], [1, 2, 3, 4]),
            make_tensor("minus", INT64, [1], [-7]),
            make_tensor("raw", INT64, [1, 1], np.array([2**40]).tobytes(), raw=True),
            make_tensor("several", INT64, [2], [1, 2]),
            make_tensor("short", INT32, [], [5]),
        ],
    )
).SerializeToString()


def test_inputs_with_defaults_need_not_be_given() -> None:
    found = read_graph(SMALL)
    assert found.inputs == {
        "x": TensorType("float32", (None, 4, None)),
        "unknown": TensorType("", ()),
    }
    assert found.outputs == {"y": TensorType("float16", ())}


def test_constants_are_single_integers() -> None:
    assert read_graph(SMALL).constants == {"five": 5, "seven": 7, "minus": -7, "raw": 2**40}


def check_is_read_or_refused(content: bytes) -> None:
    """There is no third way."""
    for read in (read_graph, external_locations):
        with suppress(ValueError):
            read(content)


def test_damage_of_any_place_is_an_error_or_none() -> None:
    for place in range(len(SMALL)):
        check_is_read_or_refused(SMALL[:place])
        for bit in range(8):
            damaged = bytearray(SMALL)
            damaged[place] ^= 1 << bit
            check_is_read_or_refused(bytes(damaged))


@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=20))
def test_damage_of_many_places_is_an_error_or_none(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(SMALL)
    for place, value in changes:
        damaged[place] = value
    check_is_read_or_refused(bytes(damaged))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_or_none(content: bytes) -> None:
    check_is_read_or_refused(content)


# Graphs that are not known


def add_input(graph: onnx.ModelProto) -> None:
    kind = onnx.helper.make_tensor_value_info("cache_position", onnx.TensorProto.INT64, ["n"])
    graph.graph.input.append(kind)


def drop_input(graph: onnx.ModelProto) -> None:
    (place,) = (n for n, value in enumerate(graph.graph.input) if value.name == "attention_mask")
    del graph.graph.input[place]


def drop_output(graph: onnx.ModelProto) -> None:
    del graph.graph.output[-1]


def attend_otherwise(graph: onnx.ModelProto) -> None:
    for node in graph.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.op_type = "MultiHeadAttention"


def compute_in_bfloat16(graph: onnx.ModelProto) -> None:
    for value in graph.graph.input:
        if value.name != "attention_mask":
            value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16


def comparison(graph: onnx.ModelProto) -> onnx.NodeProto:
    nodes: list[onnx.NodeProto] = list(graph.graph.node)
    (node,) = (node for node in nodes if node.op_type in ("Greater", "GreaterOrEqual"))
    return node


def compare_something_else(graph: onnx.ModelProto) -> None:
    comparison(graph).input[0] = "inputs_embeds"


def compare_the_other_way(graph: onnx.ModelProto) -> None:
    """A constant with what there is, rather than what there is with a constant."""
    node = comparison(graph)
    node.op_type = {"Greater": "Less", "GreaterOrEqual": "LessOrEqual"}[node.op_type]
    length, constant = node.input
    node.input[:] = [constant, length]


def compare_twice(graph: onnx.ModelProto) -> None:
    """With two constants, so that nobody knows which is the boundary."""
    node = comparison(graph)
    graph.graph.initializer.append(
        onnx.helper.make_tensor("other", onnx.TensorProto.INT64, [], [9])
    )
    graph.graph.node.add(op_type="Greater", input=[node.input[0], "other"], output=["is_other"])


def compare_with_nothing(graph: onnx.ModelProto) -> None:
    del comparison(graph).input[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_input, "has inputs that phi_edge does not know: cache_position"),
        (drop_input, "has no input attention_mask"),
        (drop_output, r"has no output present\.1\.value"),
        (attend_otherwise, "has no operator GroupQueryAttention"),
        (compute_in_bfloat16, "computes in a type that phi_edge does not know"),
    ],
)
def test_another_decoder(
    published_copy: Path, change: Callable[[onnx.ModelProto], None], said: str
) -> None:
    edit_graph(graph_file(published_copy, DECODER), change)
    check_refused(published_copy, rf"text\.onnx {said}")


@pytest.mark.parametrize(
    "change",
    [compare_something_else, compare_the_other_way, compare_twice, compare_with_nothing],
)
@pytest.mark.parametrize("name", [CPU, GPU])
def test_a_decoder_whose_boundary_is_not_found(
    tmp_path: Path, name: str, change: Callable[[onnx.ModelProto], None]
) -> None:
    """It would be run with wrong RoPE factors beyond, and nobody would see it."""
    folder = copy_published(name, tmp_path / "package")
    edit_graph(graph_file(folder, DECODER), change)
    check_refused(
        folder, r"text\.onnx chooses its RoPE factors in a way that phi_edge does not know"
    )


def test_a_decoder_that_goes_in_circles(published_copy: Path) -> None:
    """In a process of its own, which can be ended."""

    def change(graph: onnx.ModelProto) -> None:
        for one, other in ("ab", "ba"):
            graph.graph.node.add(op_type="Identity", input=[one], output=[other])
        comparison(graph).input[0] = "a"

    edit_graph(graph_file(published_copy, DECODER), change)
    command = [sys.executable, "-m", "phi_edge", "info", str(published_copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert "chooses its RoPE factors in a way that phi_edge does not know" in done.stderr


@pytest.mark.parametrize("role", [VISION, EMBEDDING])
def test_another_graph(published_copy: Path, role: str) -> None:
    edit_graph(graph_file(published_copy, role), add_input)
    check_refused(published_copy, r"\.onnx has inputs that phi_edge does not know: cache_position")


@pytest.mark.parametrize("fields", [{"head_size": 16}, {"num_key_value_heads": 1}])
def test_keys_of_other_shapes(published_copy: Path, fields: dict[str, int]) -> None:
    edit_decoder(published_copy, **fields)
    check_refused(published_copy, "has keys and values of other shapes than its configuration")


@pytest.mark.parametrize(
    ("num_layers", "said"),
    [
        (1, r"inputs that phi_edge does not know: past_key_values\.1\.key"),
        (3, r"no input past_key_values\.2\.key"),
        (2 * 10**9, "fewer layers than its configuration says"),
    ],
)
def test_other_layers(published_copy: Path, num_layers: int, said: str) -> None:
    edit_decoder(published_copy, num_hidden_layers=num_layers)
    check_refused(published_copy, rf"text\.onnx has {said}")


@pytest.mark.parametrize("edit", [edit_decoder, edit_model])
def test_other_widths(published_copy: Path, edit: Callable[..., None]) -> None:
    edit(published_copy, **{"hidden_size" if edit is edit_decoder else "vocab_size": 500})
    check_refused(published_copy, r"text\.onnx has other widths than its configuration")


def test_an_embedding_of_another_type(published_copy: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        graph.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16

    edit_graph(graph_file(published_copy, EMBEDDING), change)
    check_refused(published_copy, "embedding.onnx does not give what the decoder takes")


def test_a_vision_graph_with_more_outputs(published_copy: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        graph.graph.output.append(make_tensor_value_info("more", FLOAT, []))

    edit_graph(graph_file(published_copy, VISION), change)
    check_refused(published_copy, r"vision\.onnx has 2 outputs, not one")


def test_one_set_of_factors_has_no_boundary(published_copy: Path) -> None:
    """Such a decoder is not asked for what is beyond."""

    def take_one(graph: onnx.ModelProto) -> None:
        (choice,) = (node for node in graph.graph.node if node.op_type == "If")
        graph.graph.node.remove(comparison(graph))
        (branch,) = (each.g for each in choice.attribute if each.name == "then_branch")
        names = dict(zip([each.name for each in branch.output], choice.output, strict=True))
        for node in branch.node:
            node.output[0] = names[node.output[0]]
        place = list(graph.graph.node).index(choice)
        graph.graph.node.remove(choice)
        for node in reversed(branch.node):
            graph.graph.node.insert(place, node)

    edit_graph(graph_file(published_copy, DECODER), take_one)
    found = package.read_package(published_copy)
    assert isinstance(found, PublishedPackage)
    assert found.rope_input == ""
    assert found.model.original_context_length == CONTEXT
    with phi_edge.load_model(published_copy) as model:
        assert len(greedy_tokens(model, Prompt(random_ids(BOUNDARY + 2)))) == 8
