"""Recipes: which weights are quantized, and how.

The weights fall into groups by what the runtime does with them:

- `embedding`: looked up, one vector for each token;
- `decoder`: the four projections of each layer, read whole for every token;
- `lm_head`: read whole for every token, and decides between near-equal tokens;
- `vision`: linear layers of the CLIP tower and the projector, run once for each image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phi_edge.engine.providers import TARGETS, find_provider

from .blockwise import EXACT, ROUNDED, BlockQuantizer
from .calibrated import CalibratedQuantizer
from .channelwise import ChannelQuantizer
from .grid import Floats

Method = Literal["nearest", "search", "gptq"]
Activations = Literal["auto", "int8", "float"]
CacheDtype = Literal["int8", "float"]
PrefillDtype = Literal["int4", "int8"]
Quantizer = BlockQuantizer | ChannelQuantizer

# The most that the outputs of a linear layer of the vision tower may be off, as a part of their
# size: three times what rounding to 8 bits costs where no input stands out.
_VISION_BUDGET = 0.03


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Maps weights to quantizers; a weight without one stays in floating point.

    Attributes:
        precision: "fp32", "fp16" or "int4".
        float_dtype: Type of everything that is not quantized, and of activations.
        quantizers: Group -> quantizer.
        exceptions: Pattern of official layer names, as "model.layers.*.mlp.down_proj", ->
            quantizer that these layers have instead, None for floating point; the first pattern
            that fits counts.
        cache_dtype: "float" for a key/value cache in `float_dtype`, or "int8".
        vision: Quantizers of the vision group, the fastest first, among which calibration chooses
            for each layer. Empty where there is no choice.
        prefill: Quantizer of the decoder's layers in the prompt graph, a second copy that prompts
            run on; None where there is no such graph.
    """

    precision: str
    float_dtype: str
    quantizers: Mapping[str, Quantizer]
    exceptions: Mapping[str, Quantizer | None] = dataclasses.field(default_factory=dict)
    cache_dtype: CacheDtype = "float"
    vision: tuple[Quantizer, ...] = ()
    prefill: ChannelQuantizer | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether the export has to run the checkpoint on samples."""
        return self.cache_dtype == "int8" or any(
            isinstance(quantizer, CalibratedQuantizer) for quantizer in self.quantizers.values()
        )

    def quantizer(self, group: str, name: str) -> Quantizer | None:
        """Return how a layer is quantized; None for floating point.

        Args:
            group: "embedding", "decoder", "lm_head" or "vision".
            name: The layer's official name.
        """
        for pattern, quantizer in self.exceptions.items():
            if fnmatchcase(name, pattern):
                return quantizer
        return self.quantizers.get(group)

    def vision_errors(self, weight: npt.NDArray[np.generic], rows: Floats) -> list[float]:
        """Measure what each of `vision` does to the outputs of a layer, as a part of their size.

        Args:
            weight: [out_features, in_features], of any float dtype.
            rows: float32 [num_rows, in_features], inputs that the layer was seen to get.
        """
        exact = weight.astype(np.float32)
        return [quantizer.error(exact, rows) for quantizer in self.vision]

    def for_vision(self, errors: Mapping[str, Sequence[float]]) -> Recipe:
        """Choose the fastest quantizers whose errors are small enough.

        Args:
            errors: Official name of a layer of the vision group -> what `vision_errors` gave. Where
                all are too large, it stays in floating point.
        """

        def choose(found: Sequence[float]) -> Quantizer | None:
            pairs = zip(self.vision, found, strict=True)
            return next((quantizer for quantizer, error in pairs if error <= _VISION_BUDGET), None)

        chosen = {name: choose(found) for name, found in errors.items()}
        return dataclasses.replace(self, exceptions={**self.exceptions, **chosen})

    def for_prefill(self, kept: Collection[str] = ()) -> Recipe | None:
        """Make the recipe of the prompt graph; None where prompts run on the decoder.

        Args:
            kept: Official names of the layers that the wanted quantizer would harm. They are
                quantized as the decoder's are.
        """
        if self.prefill is None:
            return None
        found = {name: self.quantizer("decoder", name) for name in kept}
        found["lm_head"] = self.quantizer("lm_head", "lm_head")
        return dataclasses.replace(
            self,
            quantizers={"decoder": self.prefill},
            exceptions=found,
            prefill=None,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as it is written into the manifest."""
        # A list, as JSON has it, where this has a tuple.
        return {**dataclasses.asdict(self), "vision": [*map(dataclasses.asdict, self.vision)]}


def make_recipe(
    precision: str,
    provider: str,
    *,
    method: Method = "gptq",
    block_size: int = 128,
    activations: Activations = "auto",
    bits: Mapping[str, Literal[4, 8]] | None = None,
    cache_dtype: CacheDtype = "float",
    prefill_dtype: PrefillDtype = "int4",
) -> Recipe:
    """Make the recipe for a precision on an execution provider.

    Args:
        precision: "fp32", "fp16" or "int4"; the next arguments are about int4 alone.
        provider: One that packages are built for.
        method: How the values are chosen: "nearest" and "search" look at the weights alone,
            "gptq" runs the checkpoint on samples.
        block_size: Weights that share a scale.
        activations: What the decoder's weights are multiplied by on the CPU: activations rounded
            to 8 bits ("int8"), which is fast, or as they are ("float"). "auto" rounds; "gptq"
            keeps from it the layers that it would harm.
        bits: Pattern of names of the decoder's layers -> 4 or 8 bits, where not all have 4.
        cache_dtype: The key/value cache's: "float" for `float_dtype`, or "int8", on the CPU alone,
            which takes a quarter of the memory and is faster after long prompts, and whose scales
            come from samples.
        prefill_dtype: "int8" for a second copy of the decoder's layers that prompts run on, on the
            CPU alone: they take less than two thirds of the time, and the weights three times the
            memory.

    Raises:
        ProviderError: There is no such provider.
        ValueError: It cannot run such a package.
    """
    record = find_provider(provider)
    if not record.precisions:
        raise ValueError(f"no packages are built for {provider}: choose {', '.join(TARGETS)}")
    if precision not in record.precisions:
        known = " or ".join(record.precisions)
        raise ValueError(
            f"precision must be {known} for {provider}, which has no kernels for {precision!r}"
        )
    if precision != "int4":
        return Recipe(precision, {"fp32": "float32", "fp16": "float16"}[precision], {})
    in_int8 = {
        "activations are rounded to 8 bits": activations == "int8",
        "the key/value cache is int8": cache_dtype == "int8",
        "layers have 8 bits": 8 in (bits or {}).values(),
        "prompts run on int8 weights of their own": prefill_dtype == "int8",
    }
    for wish, is_wanted in in_int8.items():
        if is_wanted and not record.has_int8_kernels:
            raise ValueError(f"{wish} on the CPU alone")

    float_dtype, has_int8 = record.float_dtype, record.has_int8_kernels
    level = 0 if not has_int8 else EXACT if activations == "float" else ROUNDED
    int4 = BlockQuantizer(
        4,
        block_size,
        symmetric=False,
        accuracy_level=level,
        scale_dtype=float_dtype,
        method=method,
    )
    if method == "gptq":
        decides_level = has_int8 and activations == "auto"
        int4 = CalibratedQuantizer(**vars(int4), decides_level=decides_level)
    exceptions = {
        pattern: dataclasses.replace(int4, bits=count) for pattern, count in (bits or {}).items()
    }
    if not has_int8:
        # The vision tower and the embedding stay in floating point.
        return Recipe(precision, float_dtype, {"decoder": int4, "lm_head": int4}, exceptions)
    int8 = BlockQuantizer(8, 128, symmetric=True, accuracy_level=ROUNDED)
    # What is looked up cannot end in padding, so its blocks have to fit every width.
    lookup = BlockQuantizer(8, 32, symmetric=True)
    quantizers = {"embedding": lookup, "decoder": int4, "lm_head": int4, "vision": int8}
    vision = (ChannelQuantizer(), int8) if method == "gptq" else ()
    prefill = ChannelQuantizer() if prefill_dtype == "int8" else None
    return Recipe(precision, float_dtype, quantizers, exceptions, cache_dtype, vision, prefill)
