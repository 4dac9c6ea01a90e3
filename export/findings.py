"""What calibration has found: facts and small arrays in memory, packed weights in a journal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from .journal import Journal
from .recipe import Array, Blocks, CalibratedBlocks, Channels, Floats


@dataclasses.dataclass(frozen=True)
class CalibratedLinear:
    """How a linear layer was quantized.

    Attributes:
        accuracy_level: That of its kernel.
        error: Root of the squared error with exact activations, as a part of the outputs' size.
        rounded_error: The same with activations rounded to 8 bits.
        prefill_error: The same for the prompt graph; None where it has no such weights.
        has_channels: Whether it has weights of its own in the prompt graph.
    """

    accuracy_level: int
    error: float
    rounded_error: float
    prefill_error: float | None
    has_channels: bool


class Findings:
    """What calibration has found. A layer is a decoder layer or `lm_head`.

    Attributes:
        linears: Linear layers by their official names.
        divisors: Tensor -> what it is divided by, float32, as the weights after it were multiplied.
        cache_scales: For each decoder layer, the scales of int8 keys and values, each float32
            [kv_heads, head_size].
        vision_errors: Linear layer of the vision tower -> the error of each way to quantize it.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.linears: dict[str, CalibratedLinear] = {}
        self.divisors: dict[str, Floats] = {}
        self.cache_scales: list[tuple[Floats, Floats]] = []
        self.vision_errors: dict[str, list[float]] = {}

    def keep_weights(self, name: str, found: CalibratedBlocks) -> CalibratedLinear:
        """Write a linear layer's weights into the journal, and return the facts about them."""
        (packed, scales, zero_points), level, error, rounded_error, channels, channel_error = found
        arrays = {"packed": packed, "scales": scales}
        if zero_points is not None:
            arrays["zero_points"] = zero_points
        self._journal.store(name, arrays)
        if channels:
            values, scales = channels
            self._journal.store(f"{name}.channels", {"values": values, "scales": scales})
        return CalibratedLinear(level, error, rounded_error, channel_error, channels is not None)

    def keep_layer(
        self,
        name: str,
        linears: Mapping[str, CalibratedLinear],
        divisors: Mapping[str, Floats],
        cache_scales: tuple[Floats, Floats] | None = None,
    ) -> None:
        """Write down that a layer is done, and add what was found about it."""
        arrays = dict(divisors)
        if cache_scales:
            arrays["keys"], arrays["values"] = cache_scales
        facts = {"linears": _as_dicts(linears), "divisors": list(divisors)}
        self._journal.store(f"{name}.facts", arrays, facts)
        self.restore_layer(name)

    def restore_layer(self, name: str) -> bool:
        """Add what the journal has of a layer; tell whether the layer is done."""
        record = self._journal.load(f"{name}.facts")
        if record is None:
            return False
        arrays = {key: np.asarray(array, np.float32) for key, array in record.arrays.items()}
        for linear, facts in record.facts["linears"].items():
            self.linears[linear] = CalibratedLinear(**facts)
        self.divisors |= {tensor: arrays[tensor] for tensor in record.facts["divisors"]}
        if "keys" in arrays:
            self.cache_scales.append((arrays["keys"], arrays["values"]))
        return True

    def blocks(self, name: str) -> Blocks:
        """Read the packed values, scales and zero points (None when symmetric) of a layer."""
        arrays = self._read(name)
        return arrays["packed"], arrays["scales"], arrays.get("zero_points")

    def channels(self, name: str) -> Channels:
        """Read the int8 values and scales that a linear layer has in the prompt graph."""
        arrays = self._read(f"{name}.channels")
        return arrays["values"], arrays["scales"]

    @property
    def without_channels(self) -> list[str]:
        """Linear layers whose blocks the prompt graph has to use too."""
        return [name for name, linear in self.linears.items() if not linear.has_channels]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts about the linear layers as the manifest has them."""
        return _as_dicts(self.linears)

    def _read(self, name: str) -> Mapping[str, Array]:
        record = self._journal.load(name)
        if record is None:
            raise KeyError(f"the journal has no {name}")
        return record.arrays


def _as_dicts(linears: Mapping[str, CalibratedLinear]) -> dict[str, dict[str, Any]]:
    return {name: dataclasses.asdict(linear) for name, linear in linears.items()}
