"""LoRA adapters in the format of PEFT, merged into weights as these are read.

A weight `W` [out_features, in_features] with the factors `A` [rank, in_features] and `B`
[out_features, rank] becomes `W + scale * B @ A`, with a scale of `lora_alpha / rank`, or of
`lora_alpha / sqrt(rank)` for rank-stabilized LoRA. Source: E. Hu et al., "LoRA: Low-Rank
Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685), D. Kalajdzievski, "A Rank
Stabilization Scaling Factor for Fine-Tuning with LoRA" (https://arxiv.org/abs/2312.03732).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from phi_edge.errors import CheckpointError

from .config import read_json
from .tensors import StoredTensor, read_header

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A", ".lora_B"

# What changes more than a product added to a weight, with the value at which it does not.
_UNSUPPORTED = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "fan_in_fan_out": False,
}


class _Factors(NamedTuple):
    a: StoredTensor
    b: StoredTensor


class Adapter:
    """A LoRA adapter of a checkpoint.

    Attributes:
        files: The files that it is made of.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
        """Open an adapter folder.

        Args:
            folder: With `adapter_config.json` and `adapter_model.safetensors`.
            tensors: The checkpoint's tensors.

        Raises:
            CheckpointError: A file is missing, the adapter is of another kind or for another
                checkpoint.
        """
        self.files = [folder / CONFIG_FILE, folder / WEIGHTS_FILE]
        for file in self.files:
            if not file.is_file():
                raise CheckpointError(f"{folder} is no LoRA adapter: it has no {file.name}")
        config = read_json(folder / CONFIG_FILE)
        self._scale = _read_scale(folder, config)
        self._factors = _pair(folder, read_header(folder / WEIGHTS_FILE), tensors)

    def merge(self, name: str, weight: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Add its part of the adapter to a weight, in float32; one without stays as it is."""
        factors = self._factors.get(name)
        if factors is None:
            return weight
        a, b = (factor.read().astype(np.float32) for factor in factors)
        merged: npt.NDArray[np.float32] = weight.astype(np.float32) + self._scale * (b @ a)
        return merged


def _read_scale(folder: Path, config: dict[str, Any]) -> float:
    surplus = [key for key, plain in _UNSUPPORTED.items() if config.get(key) not in (plain, None)]
    if config.get("peft_type") != "LORA" or surplus:
        raise CheckpointError(
            f"{folder} is more than a plain LoRA adapter ({', '.join(surplus) or 'peft_type'}): "
            "merge it with PEFT's merge_and_unload, and export the merged checkpoint"
        )
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has no usable r and lora_alpha ({error})"
        ) from None


def _pair(
    folder: Path, stored: Mapping[str, StoredTensor], tensors: Mapping[str, StoredTensor]
) -> dict[str, _Factors]:
    """Find the factors of each weight, by its name."""
    factors = {}
    problems = []
    for name, tensor in stored.items():
        module, found, _ = name.removeprefix(_PREFIX).partition(_A)
        if not found:
            if _B not in name or name.replace(_B, _A) not in stored:
                problems.append(f"{name} is not known")
            continue
        weight, b = tensors.get(f"{module}.weight"), stored.get(name.replace(_A, _B))
        if weight is None or b is None:
            problems.append(f"{name} has no weight or no partner")
        elif (b.shape, tensor.shape) != (
            (weight.shape[0], tensor.shape[0]),
            (tensor.shape[0], *weight.shape[1:]),
        ):
            problems.append(f"{name} does not fit a weight {list(weight.shape)}")
        else:
            factors[weight.name] = _Factors(tensor, b)
    if problems or not factors:
        raise CheckpointError(
            f"{folder} is no adapter of this checkpoint: {'; '.join(problems) or 'it is empty'}"
        )
    return factors
