"""Our graphs against the standard exporter's, made from the same compact checkpoint.

The exporter's graphs are first compared with the golden data of the original modelling code, which
proves that they are set up right; then ours are compared with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("optimum.exporters.onnx")

from benchmarks.export import reference_export
from benchmarks.export.compare_reference import TextModel, load_own_text, load_session

from .conftest import GoldenSet

pytestmark = pytest.mark.reference

Array = npt.NDArray[Any]
# Gives the graph for a sequence of so many tokens.
ModelFor = Callable[[int], TextModel]

ORIGINAL_CONTEXT = 4096

# Largest absolute differences. All is float32, and only the order of the sums differs: measured
# were 4e-6 and 1e-6. The smallest mistake worth finding, the tanh form of GELU in the projector,
# changes the features by 2e-4.
LOGITS_TOLERANCE = 5e-5
FEATURES_TOLERANCE = 2e-5

# A short prompt; one whose answer crosses 4,096 tokens, where the cache is made again with the
# long RoPE factors; and one that is longer from the start.
TEXT_CASES = ["text", "text_crossing_4092", "text_4200"]


@pytest.fixture(scope="module")
def reference_text(compact_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFor:
    """The exported decoder: two graphs.

    The trace freezes the choice between the short and the long RoPE factors, see
    `reference_export.export_decoder`, so that each side of 4,096 tokens needs an export of its own.
    """
    folder = tmp_path_factory.mktemp("reference")
    short, long = (
        TextModel(
            reference_export.export_decoder(
                compact_checkpoint, folder / str(long_context), long_context=long_context
            )
        )
        for long_context in (False, True)
    )
    return lambda num_tokens: long if num_tokens > ORIGINAL_CONTEXT else short


@pytest.fixture(scope="module")
def own_text(compact_fp32: Path) -> ModelFor:
    model = load_own_text(compact_fp32)
    return lambda _: model


@pytest.fixture(scope="module")
def reference_tower(compact_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tower")
    return load_session(reference_export.export_tower(compact_checkpoint, folder))


def greedy_logits(model_for: ModelFor, prompt: Array, steps: int) -> Array:
    """Generate greedily with the cache, and run everything again when 4,096 is crossed.

    Returns:
        The logits that each token was chosen from [steps, vocab].
    """
    tokens = prompt.tolist()
    rows = []
    for step in range(steps):
        model = model_for(len(tokens))
        if step == 0 or len(tokens) == ORIGINAL_CONTEXT + 1:
            logits, past = model.run(tokens, model.empty_cache())
        else:
            logits, past = model.run(tokens[-1:], past)
        rows.append(logits)
        tokens.append(int(logits.argmax()))
    return np.stack(rows)


@pytest.mark.parametrize("case", TEXT_CASES)
def test_reference_decoder_gives_golden_logits(
    case: str, reference_text: ModelFor, compact: GoldenSet
) -> None:
    expected = compact.arrays[f"{case}__step_logits"]

    found = greedy_logits(reference_text, compact.arrays[f"{case}__ids"], len(expected))

    np.testing.assert_allclose(found, expected, rtol=0, atol=LOGITS_TOLERANCE)
    assert found.argmax(-1).tolist() == compact.manifest["logits"][case]["greedy_ids"]


@pytest.mark.parametrize("case", TEXT_CASES)
def test_decoder_gives_logits_and_tokens_of_reference(
    case: str, reference_text: ModelFor, own_text: ModelFor, compact: GoldenSet
) -> None:
    prompt = compact.arrays[f"{case}__ids"]
    steps = len(compact.arrays[f"{case}__step_logits"])

    expected = greedy_logits(reference_text, prompt, steps)
    found = greedy_logits(own_text, prompt, steps)

    np.testing.assert_allclose(found, expected, rtol=0, atol=LOGITS_TOLERANCE)
    assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()


def test_long_prompt_tells_the_rope_factors_apart(
    reference_text: ModelFor, compact: GoldenSet
) -> None:
    """The graph with the short factors is far off: the comparison above is not blind to them."""
    prompt = compact.arrays["text_4200__ids"]
    short = reference_text(0)

    logits, _ = short.run(prompt, short.empty_cache())

    assert np.abs(logits - compact.arrays["text_4200__step_logits"][0]).max() > 0.1


def test_reference_tower_gives_golden_features(
    reference_tower: Any, compact_checkpoint: Path, compact: GoldenSet
) -> None:
    # With one sub crop, the global crop is the padded image itself.
    pixels = padded_pixels(compact.image("wide_90x60"))

    found = image_features(reference_tower, compact_checkpoint, np.stack([pixels, pixels]))

    expected = compact.arrays["wide_90x60__nc1__embeds"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=FEATURES_TOLERANCE)


def test_vision_gives_features_of_reference(
    reference_tower: Any, compact_checkpoint: Path, compact_fp32: Path
) -> None:
    # Two different crops, or an exchange of the global and the sub crop would not show.
    crops = np.random.default_rng(0).standard_normal((2, 3, 336, 336)).astype(np.float32)

    feeds = {"pixel_values": crops[None], "image_sizes": np.array([[336, 336]], np.int64)}
    found = load_session(compact_fp32 / "vision.onnx").run(["image_features"], feeds)[0]

    expected = image_features(reference_tower, compact_checkpoint, crops)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=FEATURES_TOLERANCE)


def padded_pixels(image: Image.Image) -> Array:
    """A wide image as one crop of 336x336, normalised: float32 [3, 336, 336]."""
    height = int(336 / (image.width / image.height))
    padded = Image.new("RGB", (336, 336), "white")
    padded.paste(image.resize((336, height), Image.Resampling.BILINEAR), (0, (336 - height) // 2))
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    pixels: Array = ((np.asarray(padded, np.float32) / 255 - mean) / std).transpose(2, 0, 1)
    return pixels


def image_features(tower: Any, checkpoint: Path, crops: Array) -> Array:
    """What follows the tower for one image with one sub crop, in NumPy.

    Args:
        tower: Session of the reference's tower.
        checkpoint: Where the separators and the projector are.
        crops: Global and sub crop, float32 [2, 3, 336, 336].

    Returns:
        float32 [313, hidden]: 12 rows of 12 and a separator (`sub_GN`), `glb_GN`, and the same
        rows of the global crop.
    """

    def rename(name: str) -> str | None:
        prefix = reference_export.VISION_PREFIX
        return name.removeprefix(prefix) if name.startswith(prefix) else None

    tensors = reference_export.read_tensors(checkpoint, rename)
    weights = {name: tensor.float().numpy() for name, tensor in tensors.items()}

    hidden = tower.run(["last_hidden_state"], {"pixel_values": crops})[0][:, 1:]
    # Every 2x2 patches become one feature, with the channels in the order (dy, dx, C).
    merged = hidden.reshape(2, 12, 2, 12, 2, -1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 12, 12, -1)
    separators = np.broadcast_to(weights["sub_GN"], (2, 12, 1, merged.shape[-1]))
    global_rows, sub_rows = np.concatenate([merged, separators], axis=2).reshape(
        2, 12 * 13, merged.shape[-1]
    )
    sequence = np.concatenate([sub_rows, weights["glb_GN"][0], global_rows])

    first = sequence @ weights["img_projection.0.weight"].T + weights["img_projection.0.bias"]
    gelu = first * (1 + np.vectorize(math.erf)(first / math.sqrt(2))) / 2
    features: Array = gelu @ weights["img_projection.2.weight"].T + weights["img_projection.2.bias"]
    return features
