"""Whether the graphs of others are such as the engine can run, and what they say of the model."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from phi_edge.errors import PackageError
from phi_edge.package.base import (
    ATTENTION_MASK,
    DECODER,
    EMBEDDING,
    IMAGE_FEATURES,
    IMAGE_SIZES,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    NUM_LOGITS_TO_KEEP,
    PIXEL_VALUES,
    POSITION_IDS,
    VISION,
    ModelConfig,
    past_name,
    present_name,
)
from phi_edge.package.graph import Graph, Node
from phi_edge.package.layouts import Layout

# Operators with which a graph may choose its RoPE factors, and those that are understood: a
# comparison of what measures an input, behind what only changes its form, with a constant.
_CHOOSING = {"If", "Where", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_COMPARING = {"Greater", "GreaterOrEqual"}
_MEASURING = {ATTENTION_MASK: "Shape", POSITION_IDS: "ReduceMax"}
_FORMING = {"Gather", "Cast", "Squeeze"}
_LONGEST_CHAIN = 4


def check_graphs(
    layout: Layout, vision: Graph, embedding: Graph, decoder: Graph
) -> tuple[ModelConfig, str]:
    """Refuse graphs that are not known.

    Returns:
        The model as they have it, and the input by which the decoder chooses its RoPE factors;
        empty if it has one set of them.

    Raises:
        PackageError: Says what is not known.
    """
    model, rope_input = _check_decoder(layout, decoder)
    _check_inputs(layout, VISION, vision, {PIXEL_VALUES, IMAGE_SIZES})
    _check_inputs(layout, EMBEDDING, embedding, {INPUT_IDS}, frozenset({IMAGE_FEATURES}))
    if len(vision.outputs) != 1:
        raise PackageError(f"{layout.graphs[VISION]} has {len(vision.outputs)} outputs, not one")
    embeds = embedding.outputs.get(INPUTS_EMBEDS)
    if embeds is None or embeds.dtype != model.io_dtype:
        raise PackageError(f"{layout.graphs[EMBEDDING]} does not give what the decoder takes")
    return model, rope_input


def _check_inputs(
    layout: Layout, role: str, graph: Graph, needed: set[str], known: frozenset[str] = frozenset()
) -> None:
    """Refuse a graph that has other inputs than are known."""
    name, given = layout.graphs[role], graph.inputs.keys()
    if missing := sorted(needed - given):
        raise PackageError(f"{name} has no input {missing[0]}: phi_edge does not know such a graph")
    if unknown := sorted(given - needed - known):
        raise PackageError(f"{name} has inputs that phi_edge does not know: {', '.join(unknown)}")


def _check_decoder(layout: Layout, graph: Graph) -> tuple[ModelConfig, str]:
    """Describe the model as the decoder has it, and by what input its RoPE factors are chosen."""
    name, sizes = layout.graphs[DECODER], layout.sizes
    if sizes["num_hidden_layers"] > len(graph.inputs):
        raise PackageError(f"{name} has fewer layers than its configuration says")
    places = [(n, part) for n in range(sizes["num_hidden_layers"]) for part in ("key", "value")]
    past = {past_name(*place) for place in places}
    _check_inputs(
        layout,
        DECODER,
        graph,
        {INPUTS_EMBEDS, ATTENTION_MASK, *past},
        frozenset({POSITION_IDS, NUM_LOGITS_TO_KEEP}),
    )
    if missing := {LOGITS, *(present_name(*place) for place in places)} - graph.outputs.keys():
        raise PackageError(f"{name} has no output {min(missing)}")
    if not any(node.op_type == "GroupQueryAttention" for node in graph.nodes):
        raise PackageError(
            f"{name} has no operator GroupQueryAttention, which extends keys and values in place: "
            "phi_edge does not know this kind of graph"
        )
    kinds = {graph.inputs[each] for each in past}
    shape = (sizes["num_key_value_heads"], sizes["head_size"])
    if len(kinds) != 1 or (kind := kinds.pop()).shape[1::2] != shape:
        raise PackageError(f"{name} has keys and values of other shapes than its configuration")
    widths = (graph.inputs[INPUTS_EMBEDS].shape[-1], graph.outputs[LOGITS].shape[-1])
    said = (sizes["hidden_size"], sizes["vocab_size"])
    if any(width not in (None, size) for width, size in zip(widths, said, strict=True)):
        raise PackageError(f"{name} has other widths than its configuration")
    io_dtype = graph.inputs[INPUTS_EMBEDS].dtype
    for dtype in (io_dtype, kind.dtype):
        if dtype not in ("float32", "float16"):
            raise PackageError(f"{name} computes in a type that phi_edge does not know")
    rope_input, boundary = _find_rope_boundary(name, graph)
    model = ModelConfig(
        **sizes,
        original_context_length=min(boundary, sizes["context_length"]),
        io_dtype=io_dtype,
        cache_dtype=kind.dtype,
        eos_token_ids=layout.eos_token_ids,
        image_mean=layout.image_mean,
        image_std=layout.image_std,
    )
    return model, rope_input


def _find_rope_boundary(name: str, graph: Graph) -> tuple[str, int]:
    """Find the longest sequence that has the short RoPE factors, and the input that tells.

    The graph compares the length of the attention mask, or the largest of the position ids, with
    a constant.
    """
    choosing = [node for node in graph.nodes if node.op_type in _CHOOSING]
    if not choosing:
        return "", sys.maxsize
    sources = {output: node for node in graph.nodes for output in node.outputs}
    found = {_boundary(node, sources, graph) for node in choosing if node.op_type != "If"}
    only = found.pop() if len(found) == 1 else None
    if only is None:
        raise PackageError(f"{name} chooses its RoPE factors in a way that phi_edge does not know")
    return only


def _boundary(
    comparison: Node, sources: Mapping[str, Node], graph: Graph
) -> tuple[str, int] | None:
    """Find what a comparison looks at, and the last length that it says no to."""
    if comparison.op_type not in _COMPARING or len(comparison.inputs) != 2:
        return None
    source, constant = comparison.inputs
    passed = set()
    for _ in range(_LONGEST_CHAIN):
        if source in sources and sources[source].inputs:
            passed.add(sources[source].op_type)
            source = sources[source].inputs[0]
    if constant not in graph.constants or passed - _FORMING != {_MEASURING.get(source)}:
        return None
    # The largest position is one less than the length.
    is_position, is_or_equal = source == POSITION_IDS, comparison.op_type == "GreaterOrEqual"
    return source, graph.constants[constant] + is_position - is_or_equal
