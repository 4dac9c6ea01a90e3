"""Write a package with the dimensions of Phi-3.5-vision and random weights, in seconds.

    python -m benchmarks.synthetic_package OUT [--recipe ours|builder|fp32] [--set NAME=VALUE ...]

No checkpoint is written, and nothing is quantized: packed values and scales are drawn at random, so
that a calibrated recipe takes no longer than another. An int8 cache alone takes two minutes: it
needs scales. The answers mean nothing; size and speed are the real ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export import export_package
from export.checkpoint import Checkpoint
from phi_edge.package import Manifest
from phi_edge.text.prompt import Prompt
from quantize import (
    BlockQuantizer,
    ChannelQuantizer,
    QuantizedBlocks,
    QuantizedChannels,
    Recipe,
    make_recipe,
)

from .synthetic_checkpoint import FULL_SIZE, POOL_SIZE, WEIGHT_STD, RandomWeights, write_checkpoint

_RNG = np.random.default_rng(1)
_POOL = _RNG.integers(0, 256, POOL_SIZE, np.uint8)
# Tokens that the scales of an int8 cache are taken from.
_NUM_SEEN = 64


class RandomCheckpoint(Checkpoint):
    """A checkpoint whose weights are drawn when they are read; on disk it has their headers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._weights = RandomWeights(np.float32)

    @property
    def files(self) -> list[Path]:
        """The files that hold something; holes need no digest."""
        return [path for path in super().files if path.suffix == ".json"]

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Draw a tensor's weights."""
        return self._weights.draw(name, self.tensors[name].shape)


@dataclasses.dataclass(frozen=True)
class RandomBlocks(BlockQuantizer):
    """Gives blocks of the right shapes whose values are drawn, whatever the weights are."""

    def quantize(self, weight: npt.NDArray[np.generic], _: Any = None) -> QuantizedBlocks:
        """Draw values of a uniform distribution, with scales that make up for its width.

        So the products stay in the range of a real model's: neither infinite nor denormal.
        """
        out_features, in_features = weight.shape
        num_blocks = self.num_blocks(in_features)
        # ONNX Runtime keeps equal weights once, so no two matrices may be equal.
        pool = np.roll(_POOL, int(_RNG.integers(POOL_SIZE)))
        packed = np.resize(pool, (out_features, num_blocks, self.block_size * self.bits // 8))
        # The standard deviation of 2^bits equally likely integers is 2^bits / sqrt(12).
        scale = WEIGHT_STD * math.sqrt(12) / 2**self.bits
        spread = np.resize(pool, (out_features, num_blocks)) / np.float32(255) + np.float32(0.5)
        middle = 0x88 if self.bits == 4 else 0x80
        zero_points = np.full((out_features, -(-num_blocks * self.bits // 8)), middle, np.uint8)
        return QuantizedBlocks(
            packed, spread * np.float32(scale), None if self.symmetric else zero_points
        )


class RandomChannels(ChannelQuantizer):
    """The same for output channels."""

    def quantize_channels(self, weight: npt.NDArray[np.generic]) -> QuantizedChannels:
        """Draw values of a uniform distribution, with scales that make up for its width."""
        pool = np.roll(_POOL, int(_RNG.integers(POOL_SIZE))).view(np.int8) // 2
        scales = np.full(len(weight), WEIGHT_STD * math.sqrt(12) / 2**7, np.float32)
        return QuantizedChannels(np.resize(pool, weight.shape), scales)


def builder_recipe() -> Recipe:
    """Make the recipe that onnxruntime-genai's builder has for int4 on a CPU by default.

    Blocks of 32, symmetric, accuracy level 4; embedding and vision tower in float32.
    """
    int4 = BlockQuantizer(4, 32, symmetric=True, accuracy_level=4)
    return Recipe("int4", "float32", {"decoder": int4, "lm_head": int4})


def write_package(
    target: Path, recipe: Recipe, config: Mapping[str, object] = FULL_SIZE, *, provider: str = "cpu"
) -> Manifest:
    """Write a package of random weights, replacing one that is there.

    Args:
        target: Package folder.
        recipe: From `quantize.make_recipe`. Its quantizers are replaced by `RandomBlocks`.
        config: As in `config.json`.
        provider: As in `export_package`.
    """
    names = [field.name for field in dataclasses.fields(BlockQuantizer)]
    quantizers: dict[str, BlockQuantizer | ChannelQuantizer] = {
        group: RandomBlocks(**{name: getattr(quantizer, name) for name in names})
        if isinstance(quantizer, BlockQuantizer)
        else RandomChannels()
        for group, quantizer in recipe.quantizers.items()
    }
    if recipe.vision:
        quantizers["vision"] = RandomChannels()  # what calibration chooses unless it does harm
    prefill = recipe.prefill and RandomChannels()
    recipe = dataclasses.replace(recipe, quantizers=quantizers, vision=(), prefill=prefill)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), config, with_weights=False)
        checkpoint = RandomCheckpoint(Path(folder))
        sample = Prompt(_RNG.integers(checkpoint.config.vocab_size, size=_NUM_SEEN))
        return export_package(
            checkpoint, target, recipe, provider=provider, overwrite=True, samples=[sample]
        )


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Read `name=value` pairs; a value is JSON, or else a text as it stands."""
    options = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--recipe",
        choices=["ours", "builder", "fp32"],
        default="ours",
        help="ours: int4 of quantize.make_recipe; builder: onnxruntime-genai's",
    )
    parser.add_argument(
        "--set",
        dest="options",
        metavar="NAME=VALUE",
        nargs="+",
        default=[],
        help="arguments of make_recipe, as block_size=128",
    )
    args = parser.parse_args()
    if args.recipe == "builder":
        recipe = builder_recipe()
    else:
        precision = "int4" if args.recipe == "ours" else args.recipe
        recipe = make_recipe(precision, "cpu", **parse_options(args.options))
    manifest = write_package(args.out, recipe)
    print(f"{args.out}: {manifest.size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
