"""Every operator and type of every GPU graph has a documented kernel of its provider."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from phi_edge import package

from .conftest import Exporter
from .helpers.kernels import KERNELS, ON_THE_CPU
from .helpers.packages import TARGETS

LETTERS = {
    ir.DataType.FLOAT: "f",
    ir.DataType.FLOAT16: "h",
    ir.DataType.INT32: "i",
    ir.DataType.INT64: "l",
    ir.DataType.BOOL: "b",
}

# Type of an operator's result, where it is not that of its first input.
FIXED = dict.fromkeys(("Shape", "NonZero"), ir.DataType.INT64)
FIXED |= dict.fromkeys(("Less", "Greater", "GreaterOrEqual", "Equal"), ir.DataType.BOOL)


def used_kernels(path: Path) -> set[tuple[str, str]]:
    """Operators of a graph with the types of their main tensors; fails for unknown types."""
    graph = ir.load(path).graph
    types: dict[ir.Value | None, ir.DataType | None] = {
        value: value.dtype for value in (*graph.inputs, *graph.initializers.values())
    }
    used = set()
    for node in graph:
        main = node.inputs[1 if node.op_type in ("Where", "CastLike") else 0]
        found = types[main]
        assert found is not None, f"{node.op_type} of an unknown type"
        used.add((node.op_type, LETTERS[found]))
        to = node.attributes.get("to")
        result = ir.DataType(to.as_int()) if to else FIXED.get(node.op_type, found)
        types.update(dict.fromkeys(node.outputs, result))
    for output in graph.outputs:
        assert types[output] == output.dtype, "types were followed rightly"
    return used


@pytest.mark.parametrize(
    ("precision", "provider"), [target for target in TARGETS if target[1] != "cpu"]
)
def test_gpu_graphs_use_documented_kernels(
    export_compact: Exporter, precision: str, provider: str
) -> None:
    folder = export_compact(precision, provider)
    files = package.read_manifest(folder).graph_files.values()
    used = set().union(*(used_kernels(folder / file) for file in files))
    missing = {
        (operator, dtype)
        for operator, dtype in used
        if dtype not in KERNELS[provider].get(operator, "")
    }
    assert missing == ON_THE_CPU[provider]


def test_float32_attention_on_cuda_would_be_noticed(export_compact: Exporter) -> None:
    """Which is why there is no such target."""
    used = used_kernels(export_compact("fp32") / package.GRAPH_FILES["decoder"])
    assert ("GroupQueryAttention", "f") in used
    assert "f" not in KERNELS["cuda"]["GroupQueryAttention"]
