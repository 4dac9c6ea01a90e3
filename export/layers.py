"""Layers that more than one graph uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder, nn

from .recipe import ChannelQuantizer
from .weights import Weights

# ONNX Runtime's own operators, documented at
# https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
CONTRIB = {"_domain": "com.microsoft", "_version": 1}

# Oldest operator set with everything that the graphs use; old runtimes and DirectML read it.
OPSET = 18
IR_VERSION = 10

# A row of zeros is divided by this.
_LEAST_SIZE = float(np.finfo(np.float32).tiny)

Op = Any  # onnxscript's OpBuilder, which makes its methods up as they are called


class Linear(nn.Module):
    """`x @ weight.T + bias`, as `MatMul` or as the kernel of what the recipe quantizes to.

    Several names stand for one layer whose weights are stacked, in the order of the names.
    """

    def __init__(self, weights: Weights, group: str, *names: str, bias: bool = False) -> None:
        super().__init__()
        matrices = [f"{name}.weight" for name in names]
        self.out_features, self.in_features = weights.shape(matrices)
        self.quantizer = quantizer = weights.quantizer(group, names[0])
        self.scales: nn.Parameter | None = None
        self.zero_points: nn.Parameter | None = None
        if quantizer is None:
            self.weight = weights.parameter(*matrices, transpose=True)
        elif isinstance(quantizer, ChannelQuantizer):
            self.weight, self.scales = weights.channel_parameters(matrices, quantizer)
        else:
            self.weight, self.scales, self.zero_points = weights.quantized_parameters(
                matrices, quantizer
            )
            self.accuracy_level = weights.accuracy_level(names[0], quantizer)
        self.bias = weights.parameter(*(f"{name}.bias" for name in names)) if bias else None

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        if self.quantizer is None:
            y = op.MatMul(x, self.weight)
        elif isinstance(self.quantizer, ChannelQuantizer):
            y = self._rowwise(op, x)
        else:
            y = op.MatMulNBits(
                x,
                self.weight,
                self.scales,
                self.zero_points,
                K=self.in_features,
                N=self.out_features,
                bits=self.quantizer.bits,
                block_size=self.quantizer.block_size,
                accuracy_level=self.accuracy_level,
                **CONTRIB,
            )
        return y if self.bias is None else op.Add(y, self.bias)

    def _rowwise(self, op: Op, x: ir.Value) -> ir.Value:
        """Multiply int8 weights by inputs that are rounded row by row.

        The kernel rounds all inputs on one grid, so each row is brought to the same size first.
        """
        size = op.Max(op.ReduceMax(op.Abs(x), [-1], keepdims=1), _LEAST_SIZE)
        y = op.DynamicQuantizeMatMul(op.Div(x, size), self.weight, self.scales, **CONTRIB)
        return op.Mul(y, size)


def expose_inputs(model: ir.Model, names: Sequence[str], step: int = 1) -> None:
    """Add outputs NAME.input to a graph: what linear layers in floating point are given.

    Args:
        model: Its matrix products have to be those of the layers.
        names: Of the layers, in the order in which they run.
        step: Give every so many rows only.
    """
    matmuls = [node for node in model.graph if node.op_type == "MatMul"]
    for name, matmul in zip(names, matmuls, strict=True):
        (given, weight) = matmul.inputs
        if given is None or weight is None:
            raise ValueError(f"{name} has no input")
        if step > 1:
            given = _every(model.graph, given, step)
        given.name, given.type = f"{name}.input", weight.type
        model.graph.outputs.append(given)


def _every(graph: ir.Graph, rows: ir.Value, step: int) -> ir.Value:
    """Take every so many of rows [..., num_rows, width]."""
    bounds = []
    end = np.iinfo(np.int64).max
    for name, number in {"start": 0, "end": end, "axis": -2, "step": step}.items():
        node = ir.node("Constant", [], {"value": ir.tensor(np.array([number], np.int64))})
        node.outputs[0].name = f"{rows.name}.{name}"
        bounds.append(node)
    node = ir.node("Slice", [rows, *(bound.outputs[0] for bound in bounds)])
    graph.extend([*bounds, node])
    return node.outputs[0]


def make_model(
    name: str,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    module: nn.Module,
) -> ir.Model:
    """Build the ONNX model of a module.

    Args:
        name: Graph name.
        inputs: Typed graph inputs, given to the module in this order. One with a constant
            value is an input that the caller may leave out.
        outputs: Names and types of the graph outputs, in the order that the module gives them.
        module: Called once to build the graph.
    """
    graph = ir.Graph(
        inputs=inputs,
        outputs=[],
        nodes=[],
        name=name,
        opset_imports={"": OPSET, "com.microsoft": 1},
    )
    for value in inputs:
        if value.const_value is not None:
            graph.register_initializer(value)
    results = module(GraphBuilder(graph).op, *inputs)
    results = results if isinstance(results, Sequence) else [results]
    for result, declared in zip(results, outputs, strict=True):
        result.name, result.type, result.shape = declared.name, declared.type, declared.shape
        graph.outputs.append(result)
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="phi_edge")
