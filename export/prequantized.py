"""Checkpoints whose decoder is quantized already, in the layouts of `packed`.

The four projections of every decoder layer are quantized, as AutoGPTQ, GPTQModel and AutoAWQ do
it; whatever else there is stands in floating point.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phi_edge.errors import CheckpointError

from .config import read_json
from .packed import Blocks, PackedLayout
from .tensors import StoredTensor

logger = logging.getLogger(__name__)

# Method -> formats, the default first, with what is to be added to zero points. The names are
# those of transformers' GPTQConfig and AwqConfig.
_ZERO_OFFSETS = {"gptq": {"gptq": 1, "gptq_v2": 0}, "awq": {"gemm": 0}}
_BITS = {"gptq": (4, 8), "awq": (4,)}
# Where the programs and their releases write the format.
_FORMAT_KEYS = ("checkpoint_format", "version", "format")

_ADVICE = "export from the original weights instead"

# The weight group that is quantized.
GROUP = "decoder"

Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, StoredTensor]


@dataclasses.dataclass(frozen=True)
class StoredBlocks:
    """How the decoder's blocks go into a graph; stands in for a quantizer.

    Attributes:
        layout: How the checkpoint holds them.
        accuracy_level: That of the kernel.
        symmetric: Always false: zero points are kept, equal or not.
    """

    layout: PackedLayout
    accuracy_level: int
    symmetric = False

    @property
    def bits(self) -> int:
        """Of the integers."""
        return self.layout.bits

    @property
    def block_size(self) -> int:
        """Inputs that share a scale."""
        return self.layout.block_size

    def num_blocks(self, in_features: int) -> int:
        """Count the blocks of this many inputs, all of them full."""
        return in_features // self.block_size


def read_layout(folder: Path) -> PackedLayout | None:
    """Read what `config.json` says of quantization; None for weights in floating point.

    Raises:
        CheckpointError: It names a layout that cannot be repacked.
    """
    path = folder / "config.json"
    raw = read_json(path).get("quantization_config")
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: quantization_config is not a JSON object")
    method = str(raw.get("quant_method"))
    bits: Any = raw.get("bits")
    block_size: Any = raw.get("group_size")
    offsets = _ZERO_OFFSETS.get(method, {})
    named = (str(raw[key]).lower() for key in _FORMAT_KEYS if raw.get(key))
    format_name = next(named, next(iter(offsets), ""))
    problem = None
    if format_name not in offsets:
        problem = f"by {method} {format_name}, and not by gptq (gptq, gptq_v2) or awq (gemm)"
    elif bits not in _BITS[method]:
        problem = f"to {bits} bits, and not to {' or '.join(map(str, _BITS[method]))}"
    elif not isinstance(block_size, int) or block_size < 16 or block_size & (block_size - 1):
        problem = f"in groups of {block_size}, and not of a power of two from 16"
    if problem:
        raise CheckpointError(f"{path}: weights are quantized {problem}: {_ADVICE}")
    return PackedLayout(
        method=method,
        bits=int(bits),
        block_size=block_size,
        zero_offset=offsets[format_name],
        symmetric=method == "gptq" and raw.get("sym") is True,
    )


def stored_shapes(layout: PackedLayout | None, shapes: Shapes, found: Tensors) -> Shapes:
    """List the name and shape of every tensor that the files of a checkpoint should hold.

    Args:
        layout: How the decoder's matrices are held.
        shapes: Name and shape of every tensor of the same checkpoint in floating point.
        found: What the files do hold; a bias is expected where there is one.

    Raises:
        CheckpointError: A matrix does not divide into blocks and words, or there are quantized
            ones without a layout.
    """
    if layout is None:
        if any(name.endswith(".qweight") for name in found):
            raise CheckpointError(
                "weights are quantized, and config.json has no quantization_config that tells how"
            )
        return shapes
    stored = dict(shapes)
    for name in _packed_names(shapes):
        out_features, in_features = stored.pop(name)
        if in_features % layout.block_size or out_features * layout.bits % 32:
            raise CheckpointError(
                f"{name} [{out_features}, {in_features}] does not divide into groups of "
                f"{layout.block_size} and words of 32 bits: {_ADVICE}"
            )
        for part, shape in layout.shapes(out_features, in_features).items():
            stored[_part(name, part)] = shape
        if _part(name, "bias") in found:
            stored[_part(name, "bias")] = (out_features,)
    return stored


def check_matrices(layout: PackedLayout, shapes: Shapes, tensors: Tensors) -> None:
    """Refuse matrices that are more than blocks of successive inputs.

    Raises:
        CheckpointError: Inputs are in another order, or a matrix has a bias.
    """
    for name in _packed_names(shapes):
        order, bias = (tensors.get(_part(name, part)) for part in ("g_idx", "bias"))
        successive = np.arange(shapes[name][1]) // layout.block_size
        if order and not np.array_equal(order.read(), successive):
            raise CheckpointError(
                f"{name} is quantized in the order of its activations (desc_act), which is not "
                f"that of its inputs: {_ADVICE}"
            )
        # AutoGPTQ up to 0.7 writes zeros for layers without one (AutoGPTQ/AutoGPTQ#602).
        if bias and bias.read().any():
            raise CheckpointError(f"{name} has a bias, which this architecture has not: {_ADVICE}")


def read_blocks(layout: PackedLayout, name: str, tensors: Tensors) -> Blocks:
    """Read a matrix and repack it.

    Raises:
        CheckpointError: It cannot be read, or its values contradict the layout.
    """
    qweight, qzeros, scales = (
        tensors[_part(name, part)].read() for part in ("qweight", "qzeros", "scales")
    )
    try:
        return layout.repack(qweight, qzeros, scales)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None


def check_kernels(layout: PackedLayout, *, has_int8_kernels: bool) -> None:
    """Refuse to keep blocks that a provider cannot multiply.

    Raises:
        CheckpointError: They have 8 bits, and the provider has no kernels for these.
    """
    if layout.bits == 8 and not has_int8_kernels:
        raise CheckpointError(
            "the weights are quantized to 8 bits, which can be exported for the CPU alone: choose "
            "it, or the precision fp16"
        )


def stored_blocks(layout: PackedLayout, accuracy_level: int) -> StoredBlocks:
    """Keep the decoder's blocks as they are, and say so in the log."""
    logger.info(
        "keeping the decoder's weights as %s has quantized them: %d bits, blocks of %d",
        layout.method,
        layout.bits,
        layout.block_size,
    )
    return StoredBlocks(layout, accuracy_level)


def describe_recipe(recipe: dict[str, Any], layout: PackedLayout | None) -> dict[str, Any]:
    """Describe a recipe for the manifest, with what the checkpoint brought in its place."""
    if layout is None:
        return recipe
    brought = {
        "method": f"{layout.method}-checkpoint",
        "bits": layout.bits,
        "block_size": layout.block_size,
        "symmetric": False,
    }
    quantizers = dict(recipe["quantizers"])
    if GROUP in quantizers:
        quantizers[GROUP] = quantizers[GROUP] | brought
    return recipe | {"quantizers": quantizers, "checkpoint": brought}


def _packed_names(shapes: Shapes) -> list[str]:
    """List the matrices of the decoder's layers; what else is in a layer is a vector."""
    return [
        name
        for name, shape in shapes.items()
        if name.startswith("model.layers.") and len(shape) == 2
    ]


def _part(name: str, part: str) -> str:
    return name.removesuffix("weight") + part
