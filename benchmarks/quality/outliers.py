"""Tabulate the output errors of recipes on a layer that has outlying channels.

    python -m benchmarks.quality.outliers [--in-features N] [--out-features N]

Weights and inputs are drawn, since no trained model of full size is at hand. Weights are of a t
distribution with 5 degrees of freedom, whose tails are as heavy as those of trained ones. Inputs
share a few directions, as activations do, and some of their channels are much larger than the
rest: a few by 20 to 100 times on every token (the outlier features of T. Dettmers et al.,
"LLM.int8()", https://arxiv.org/abs/2208.07339), and two by 1,000 times on the first token alone
(the massive activations of M. Sun et al., https://arxiv.org/abs/2402.17762, which
microsoft/onnxruntime#29849 reports of Phi-3.5). Half of the tokens calibrate, the other half judge.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

from benchmarks.tables import format_header, format_row
from quantize import (
    Activations,
    BlockQuantizer,
    CalibratedQuantizer,
    Method,
    dequantize,
    make_recipe,
)
from quantize.activations import relative_error, round_activations

RECIPES: tuple[tuple[Method, int], ...] = (
    ("nearest", 32), ("nearest", 128), ("search", 32), ("search", 128),
    ("gptq", 32), ("gptq", 64), ("gptq", 128), ("gptq", 256),
)  # fmt: skip
ACTIVATIONS: tuple[Activations, ...] = ("int8", "float", "auto")
_NUM_TOKENS = 8192
_NUM_DIRECTIONS = 64
_OUTLIER_PART = 0.004
_MASSIVE = 1000.0

Floats = npt.NDArray[np.float32]


def draw_layer(in_features: int, out_features: int) -> tuple[Floats, Floats]:
    """Draw a weight [out_features, in_features], and inputs [8192, in_features]."""
    rng = np.random.default_rng(0)
    weight = rng.standard_t(5, (out_features, in_features)) * 0.02
    directions = rng.standard_normal((_NUM_DIRECTIONS, in_features))
    rows = rng.standard_normal((_NUM_TOKENS, _NUM_DIRECTIONS)) @ directions / 8
    rows += 0.5 * rng.standard_normal(rows.shape)
    channels = rng.permutation(in_features)
    outliers = channels[: round(_OUTLIER_PART * in_features)]
    rows[:, outliers] *= rng.uniform(20, 100, len(outliers))
    rows[:: _NUM_TOKENS // 8, channels[-2:]] *= _MASSIVE
    return weight.astype(np.float32), rows.astype(np.float32)


def output_error(
    weight: Floats, rows: Floats, method: Method, block_size: int, activations: Activations
) -> float:
    """Compute the relative error of the outputs for the second half of the inputs."""
    recipe = make_recipe(
        "int4", "cpu", method=method, block_size=block_size, activations=activations
    )
    quantizer = recipe.quantizers["decoder"]
    if not isinstance(quantizer, BlockQuantizer):
        raise TypeError("the decoder's weights are quantized in blocks")
    seen, judged = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    exact = judged @ weight.T
    level = quantizer.accuracy_level
    if isinstance(quantizer, CalibratedQuantizer):
        sample = seen[:: len(seen) // 256]
        scales = quantizer.input_scales(weight, sample)
        if scales is not None:
            weight, seen, judged, sample = (
                weight * scales,
                *(x / scales for x in (seen, judged, sample)),
            )
        found = quantizer.calibrate(weight, seen.T @ seen, sample)
        blocks, level = found.blocks, found.accuracy_level
    else:
        blocks = quantizer.quantize(weight)
    if level == 4:
        judged = round_activations(judged, block_size)
    return relative_error(judged @ dequantize(blocks, 4, weight.shape[1]).T, exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--in-features", type=int, default=3072)
    parser.add_argument("--out-features", type=int, default=3072)
    args = parser.parse_args()
    weight, rows = draw_layer(args.in_features, args.out_features)
    print(format_header("method", "block size", *(f"{name} activations" for name in ACTIVATIONS)))
    for method, block_size in RECIPES:
        errors = [output_error(weight, rows, method, block_size, kind) for kind in ACTIVATIONS]
        print(format_row(method, block_size, *(f"{error:.4f}" for error in errors)), flush=True)


if __name__ == "__main__":
    main()
