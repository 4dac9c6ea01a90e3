"""Recipes: which weights are quantized, and how.

The weights fall into groups by what the runtime does with them:

- `embedding`: rows are looked up, one a token;
- `decoder`: the four projections of each layer, read whole for every token;
- `lm_head`: read whole for every token, and decides between near-equal tokens;
- `vision`: linear layers of the CLIP tower and the projector, run once for each image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .blockwise import BlockQuantizer, Method

GROUPS = ("embedding", "decoder", "lm_head", "vision")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Maps weight groups to quantizers; a group without one stays in floating point.

    Attributes:
        precision: "fp32", "fp16" or "int4".
        float_dtype: Type of everything that is not quantized, and of activations.
        quantizers: Group -> quantizer.
        cache_dtype: "float" for a key/value cache in `float_dtype`, or "int8".
    """

    precision: str
    float_dtype: str
    quantizers: Mapping[str, BlockQuantizer]
    cache_dtype: str = "float"

    def as_dict(self) -> dict[str, Any]:
        """The recipe as it is written into the manifest."""
        return dataclasses.asdict(self)


def make_recipe(
    precision: str,
    provider: str,
    *,
    method: Method = "nearest",
    block_size: int = 32,
    float_activations: bool = False,
) -> Recipe:
    """The recipe for a precision on an execution provider.

    Args:
        precision: "fp32", "fp16" or "int4".
        provider: "cpu", "cuda" or "dml".
        method: How int4 values are chosen; see `BlockQuantizer`.
        block_size: Weights that share a 4-bit scale.
        float_activations: On the CPU, multiply the decoder's weights by activations as they are,
            and not rounded to 8 bits, which is faster.

    Raises:
        ValueError: There is no such precision, the provider cannot run it, or it has no such
            choices.
    """
    if float_activations and (precision, provider) != ("int4", "cpu"):
        raise ValueError("activations are rounded in int4 on the CPU alone")
    if method != "nearest" and precision != "int4":
        raise ValueError(f"the method {method!r} is one of int4; {precision} is not quantized")
    if precision == "fp32":
        if provider == "cuda":
            # https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md
            raise ValueError("attention on CUDA has no fp32 kernel: choose fp16 or int4")
        return Recipe(precision, "float32", {})
    if precision == "fp16":
        return Recipe(precision, "float16", {})
    if precision != "int4":
        raise ValueError(f"precision must be fp32, fp16 or int4, not {precision!r}")

    if provider == "cpu":
        # Accuracy level 4 lets the CPU kernels multiply integers, activations in 8 bits; 1 is
        # float32.
        level = 1 if float_activations else 4
        int4 = BlockQuantizer(4, block_size, symmetric=False, accuracy_level=level, method=method)
        int8 = BlockQuantizer(8, 128, symmetric=True, accuracy_level=4)
        # A row that is looked up cannot end in padding, so its blocks have to fit every width.
        lookup = BlockQuantizer(8, 32, symmetric=True)
        quantizers = {"embedding": lookup, "decoder": int4, "lm_head": int4, "vision": int8}
        return Recipe(precision, "float32", quantizers)
    # GPUs multiply in float16. Their 8-bit kernels differ between providers and releases, so
    # the vision tower and the embedding stay in float16.
    int4 = BlockQuantizer(4, block_size, symmetric=False, scale_dtype="float16", method=method)
    return Recipe(precision, "float16", {"decoder": int4, "lm_head": int4})
