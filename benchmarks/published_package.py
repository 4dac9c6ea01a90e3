"""Write a folder like Microsoft's published CPU package of Phi-3.5-vision, with random weights.

    python -m benchmarks.published_package OUT [--all-crops]

Graphs, names and types are those of `tests/published/tiny-3.5-cpu`, with more layers and real
sizes: 2.38 GB for the decoder, 0.45 for the vision tower, 0.39 for the embedding. They come to
3.22 GB, as the published files do. The answers mean nothing; size and speed are the real ones.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from export.config import Phi3VConfig, read_config
from export.rope import rope_table

from .synthetic_checkpoint import FULL_SIZE, RandomWeights, write_tokenizer
from .synthetic_package import RandomBlocks

TEMPLATE = Path(__file__).parents[1] / "tests" / "published" / "tiny-3.5-cpu"

# Sizes of the template -> those of the model, for values and nodes with something in their names:
# the first pattern that is found counts.
Sizes = Mapping[str, Mapping[int, int]]
Constants = Mapping[str, npt.NDArray[np.generic]]

# Crops that onnxruntime-genai's image processor gives for every image.
_ALL_CROPS = 17

# The numbers in names that count layers, and how far they go from one layer to the next.
_NUMBER = re.compile(
    r"(layers\.|past_key_values\.|present\.|Attention_|QuickGelu_|SkipLayerNorm_AddBias_"
    r"|onnx::MatMul_)(\d+)"
)
_STEPS = {"SkipLayerNorm_AddBias_": 2, "onnx::MatMul_": 22}

_BLOCKS = RandomBlocks(4, 32, symmetric=True, accuracy_level=4)


def write_package(
    target: Path, config: Mapping[str, object] = FULL_SIZE, *, all_crops: bool = False
) -> None:
    """Write a package folder.

    Args:
        target: Where to. Files that are there are replaced.
        config: As in `config.json`.
        all_crops: Have the vision graph take 17 crops, and no other number.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        sizes = read_config(Path(folder))
    shutil.copyfile(TEMPLATE / "processor_config.json", target / "processor_config.json")
    _write_genai_config(target, sizes)
    write_tokenizer(target)
    weights = RandomWeights(np.float32)
    for name, model in {
        "phi-3.5-v-instruct-vision.onnx": _make_vision(sizes, all_crops=all_crops),
        "phi-3.5-v-instruct-embedding.onnx": _make_embedding(sizes),
        "phi-3.5-v-instruct-text.onnx": _make_text(sizes),
    }.items():
        _draw_weights(model.graph, weights)
        ir.save(model, target / name, external_data=f"{name}.data", size_threshold_bytes=0)


def _write_genai_config(target: Path, config: Phi3VConfig) -> None:
    content = json.loads((TEMPLATE / "genai_config.json").read_text(encoding="utf-8"))
    content["model"]["context_length"] = config.max_position_embeddings
    content["model"]["vocab_size"] = config.vocab_size
    content["search"]["max_length"] = config.max_position_embeddings
    decoder = content["model"]["decoder"]
    decoder |= {name: getattr(config, name) for name in decoder if hasattr(config, name)}
    (target / "genai_config.json").write_text(json.dumps(content, indent=4), encoding="utf-8")


def _make_vision(config: Phi3VConfig, *, all_crops: bool) -> ir.Model:
    model = ir.load(TEMPLATE / "phi-3.5-v-instruct-vision.onnx")
    tower = config.vision
    width = tower.hidden_size
    sizes = {
        "img_projection|_GN": {64: config.hidden_size, 128: 4 * width},
        "": {32: width, 64: tower.intermediate_size, 96: 3 * width},
    }
    _scale(model.graph, sizes, {}, {"num_heads": tower.num_attention_heads})
    # The features are taken before the last layer.
    nodes = ("SkipLayerNorm_AddBias_1", "/vision_model/layers.1/mlp/fc2/MatMul_Q4")
    _repeat(model.graph, *nodes, tower.num_hidden_layers - 1)
    if all_crops:
        pixel_values = model.graph.inputs[0]
        pixel_values.shape = ir.Shape(["num_images", _ALL_CROPS, 3, "height", "width"])
    return model


def _make_embedding(config: Phi3VConfig) -> ir.Model:
    model = ir.load(TEMPLATE / "phi-3.5-v-instruct-embedding.onnx")
    sizes = {"": {64: config.hidden_size, 512: config.vocab_size}}
    _scale(model.graph, sizes, {"/Constant_6": np.array(config.vocab_size)}, {})
    return model


def _make_text(config: Phi3VConfig) -> ir.Model:
    model = ir.load(TEMPLATE / "phi-3.5-v-instruct-text.onnx")
    boundary, half_head = config.original_max_position_embeddings, config.head_size // 2
    sizes = {
        "past_key_values|present": {2: config.num_key_value_heads, 32: config.head_size},
        "_small": {64: boundary, 16: half_head},
        "_large": {512: config.max_position_embeddings, 16: half_head},
        "": {
            64: config.hidden_size,
            128: config.intermediate_size,
            192: config.qkv_size,
            512: config.vocab_size,
        },
    }
    # The constant after which the long factors count has its value in its name.
    old, new = "TensorProto.INT64/0D/64", f"TensorProto.INT64/0D/{boundary}"
    cos, sin = rope_table(config, "cos"), rope_table(config, "sin")
    constants = {
        f"/model/constant_nodes/{old}": np.array(boundary),
        "/small/cos_cache/Constant": cos[:boundary],
        "/small/sin_cache/Constant": sin[:boundary],
        "/large/cos_cache/Constant": cos[boundary:],
        "/large/sin_cache/Constant": sin[boundary:],
    }
    attributes = {
        "num_heads": config.num_attention_heads,
        "kv_num_heads": config.num_key_value_heads,
        "scale": 1 / math.sqrt(config.head_size),
    }
    _scale(model.graph, sizes, constants, attributes)
    for node in model.graph:
        if old in (node.name or ""):
            _rename(node, lambda name: name.replace(old, new))
    layer = "/model/layers.1"
    nodes = (f"{layer}/input_layernorm/SkipLayerNorm", f"{layer}/mlp/down_proj/MatMul_Q4")
    _repeat(model.graph, *nodes, config.num_hidden_layers)
    return model


def _scale(
    graph: ir.Graph, sizes: Sizes, constants: Constants, attributes: Mapping[str, float]
) -> None:
    """Give everything in a graph its real size.

    Args:
        graph: What to change, with the graphs inside it.
        sizes: The sizes of values and matrices.
        constants: New values of constants, by the names of their nodes.
        attributes: New values of attributes, where a node has them.
    """

    def scaled(name: str | None, size: int) -> int:
        found = next(found for pattern, found in sizes.items() if re.search(pattern, name or ""))
        return found.get(size, size)

    def scale_shapes(values: Iterable[ir.Value]) -> None:
        for value in values:
            if value.shape is not None:
                value.shape = ir.Shape(
                    scaled(value.name, size) if isinstance(size, int) else size
                    for size in value.shape
                )

    scale_shapes([*graph.inputs, *graph.initializers.values()])
    for node in graph.all_nodes():
        scale_shapes(node.outputs)
        for name in attributes.keys() & node.attributes.keys():
            node.attributes[name] = ir.Attr(name, node.attributes[name].type, attributes[name])
        if (constant := constants.get(node.name or "")) is not None:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(constant))
        if node.op_type == "MatMulNBits":
            _resize(node, *(scaled(node.name, node.attributes[name].as_int()) for name in "NK"))


def _resize(node: ir.Node, rows: int, columns: int) -> None:
    """Give a quantized matrix its real size."""
    node.attributes["N"] = ir.AttrInt64("N", rows)
    node.attributes["K"] = ir.AttrInt64("K", columns)
    blocks = (rows, columns // _BLOCKS.block_size)
    shapes = ((*blocks, _BLOCKS.block_size * _BLOCKS.bits // 8), blocks)
    for value, shape in zip(node.inputs[1:], shapes, strict=True):
        if value is not None:
            value.shape = ir.Shape(shape)


def _repeat(graph: ir.Graph, first: str, last: str, num_layers: int) -> None:
    """Repeat the second layer of two, and number what comes after it anew.

    Args:
        graph: What to change.
        first: Name of the layer's first node.
        last: Name of its last one.
        num_layers: How many layers there will be.
    """
    nodes = list(graph)
    names = [node.name for node in nodes]
    start, end = names.index(first), names.index(last) + 1
    layer, rest = nodes[start:end], nodes[end:]
    num_more = num_layers - 2
    for node in rest:
        _rename(node, lambda name: _count_on(name, num_more))
    twins = _Twins(graph)
    for by in range(1, num_more + 1):
        graph.insert_before(rest[0], [twins.node(node, by) for node in layer])
    for node in rest:
        for index, value in enumerate(node.inputs):
            if value is not None and value.producer() not in rest:
                node.replace_input_with(index, twins.value(value, num_more))
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


class _Twins:
    """Finds or makes what a node or value is to a layer, for a layer some places further on."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        values = (value for node in graph for value in (*node.inputs, *node.outputs))
        self._values = {value.name: value for value in values if value is not None}

    def node(self, node: ir.Node, by: int) -> ir.Node:
        """Make a node."""
        return ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self.value(value, by) for value in node.inputs],
            node.attributes.values(),
            outputs=[self.value(value, by) for value in node.outputs],
            name=_count_on(node.name or "", by),
        )

    def value(self, value: ir.Value, by: int) -> ir.Value:
        """Find a value, or make it."""
        name = _count_on(value.name or "", by)
        # An output that is left out has no name.
        if name and name in self._values:
            return self._values[name]
        twin = ir.Value(name=name, type=value.type, shape=value.shape)
        self._values[name] = twin
        if value.is_initializer():
            twin.const_value = value.const_value
            self._graph.register_initializer(twin)
        if value.is_graph_input():
            self._graph.inputs.append(twin)
        if value.is_graph_output():
            self._graph.outputs.append(twin)
        return twin


def _count_on(name: str, by: int) -> str:
    """Add to the numbers of layers in a name."""
    return _NUMBER.sub(lambda m: f"{m[1]}{int(m[2]) + by * _STEPS.get(m[1], 1)}", name)


def _rename(node: ir.Node, change: Callable[[str], str]) -> None:
    """Change the name of a node, and those of its outputs."""
    node.name = change(node.name or "")
    for value in node.outputs:
        value.name = change(value.name or "")


def _draw_weights(graph: ir.Graph, weights: RandomWeights) -> None:
    """Have every weight drawn when it is written, one at a time."""
    for name, value in graph.initializers.items():
        shape = ir.Shape(value.shape or ())
        dtype = ir.DataType.UINT8 if name.endswith("_Q4") else ir.DataType.FLOAT
        load = partial(_draw, weights, name, shape.numpy())
        value.const_value = ir.LazyTensor(load, dtype, shape, name=name)


def _draw(weights: RandomWeights, name: str, shape: tuple[int, ...]) -> ir.TensorProtocol:
    if not name.endswith(("_Q4", "_scales")):
        return ir.tensor(weights.draw(name, shape))
    # The blocks are drawn whatever the matrix is: only its shape counts.
    matrix = np.broadcast_to(np.float32(0), (shape[0], shape[1] * _BLOCKS.block_size))
    blocks = _BLOCKS.quantize(matrix)
    if name.endswith("_Q4"):
        return ir.tensor(blocks.packed)
    # Half of the scales are negative, as the published ones are: values from -8 to 7 are no more
    # than 8 apart from 0 on one side only. Without it the mean is not 0, and products grow.
    return ir.tensor(np.copysign(blocks.scales, weights.draw(name, shape)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--all-crops",
        action="store_true",
        help="the vision graph takes 17 crops and no other number, as in some exports",
    )
    args = parser.parse_args()
    write_package(args.out, all_crops=args.all_crops)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
