"""The fp32 package computes what Microsoft's own code computed.

Tolerances are those of the golden data: pixels 1e-6, embeddings 1e-4, logits 2e-4, greedy tokens
equal. `pytest tests/test_golden.py --junitxml=FILE` writes each case's largest difference to a
file, as the property `max_difference`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phi_edge
from phi_edge import Prompt
from phi_edge.engine import Run
from phi_edge.image import hd_image

from .conftest import DEV, GOLDEN, GoldenSet

PIXELS, EMBEDS, LOGITS = 1e-6, 1e-4, 2e-4

Record = Callable[[str, object], None]


def check_near(found: Any, expected: Any, tolerance: float, record: Record) -> None:
    """Compare two arrays, and put their largest difference on record."""
    difference = float(np.abs(found - expected).max())
    record("max_difference", difference)
    assert difference <= tolerance


def cases(folder: Path, kind: str) -> list[str]:
    """Names of the cases in a golden set; none where the set is absent."""
    manifest = folder / "manifest.json"
    return list(json.loads(manifest.read_text())[kind]) if manifest.is_file() else []


def check_preprocess(golden: GoldenSet, model: phi_edge.Model, name: str, record: Record) -> None:
    case = golden.manifest["preprocess"][name]
    num_crops = int(name.rpartition("__nc")[2])
    image = golden.image(case["image"])
    crops = model.preprocess(image, num_crops)

    padded = np.ascontiguousarray(hd_image(image, num_crops))
    assert hashlib.sha256(padded.tobytes()).hexdigest() == case["hd_uint8_sha256"]
    assert list(crops.image_size) == (case.get("image_sizes_hw") or case["image_size_hw"])
    assert crops.num_tokens == case["num_img_tokens"]
    assert crops.pixel_values.shape == (case["real_crops"], 3, 336, 336)
    assert crops.pixel_values.dtype == np.float32

    # The reference pads to num_crops + 1 crops of zeros.
    reference_shape = (num_crops + 1, 3, 336, 336)
    pixels = np.zeros(reference_shape, np.float32)
    pixels[: len(crops.pixel_values)] = crops.pixel_values
    sampled = pixels.ravel()[golden.arrays[f"{name}__idx"]]
    check_near(sampled, golden.arrays[f"{name}__val"], PIXELS, record)
    if f"full/{name}" in golden.arrays:
        whole = golden.arrays[f"full/{name}"][0]
        check_near(pixels, whole, PIXELS, record)


@pytest.mark.parametrize("name", cases(GOLDEN, "preprocess"))
def test_preprocess_compact(
    compact: GoldenSet, model: phi_edge.Model, name: str, record_property: Record
) -> None:
    check_preprocess(compact, model, name, record_property)


@pytest.mark.parametrize("name", cases(DEV / "cases", "preprocess"))
def test_preprocess_dev(
    dev: GoldenSet, dev_model: phi_edge.Model, name: str, record_property: Record
) -> None:
    check_preprocess(dev, dev_model, name, record_property)


@pytest.mark.parametrize("name", cases(DEV / "cases", "prompts"))
def test_prompt_dev(dev: GoldenSet, dev_model: phi_edge.Model, name: str) -> None:
    case = dev.manifest["prompts"][name]
    prompt = dev_model.encode_prompt(
        case["text"], images=dev.images(case["images"]), num_crops=case["num_crops"]
    )
    assert prompt.input_ids.dtype == np.int64
    np.testing.assert_array_equal(prompt.input_ids, dev.arrays[name])


@pytest.mark.parametrize("name", cases(GOLDEN, "embeds"))
def test_embeds_compact(
    compact: GoldenSet, model: phi_edge.Model, name: str, record_property: Record
) -> None:
    image, _, num_crops = name.rpartition("__nc")
    crops = model.preprocess(compact.image(image), int(num_crops))
    features = model.encode_image(crops)
    assert features.dtype == np.float32
    expected = compact.arrays[f"{name}__embeds"]
    check_near(features, expected, EMBEDS, record_property)


@pytest.mark.parametrize("name", cases(DEV / "cases", "embeds"))
def test_embeds_dev(
    dev: GoldenSet, dev_model: phi_edge.Model, name: str, record_property: Record
) -> None:
    case = dev.manifest["embeds"][name]
    crops = dev_model.preprocess(dev.image(case["image"]), case["num_crops"])
    expected = dev.arrays[f"{name}__image_embeds"]
    check_near(dev_model.encode_image(crops), expected, EMBEDS, record_property)


def check_greedy(
    run: Run,
    token_ids: list[int],
    step_logits: Any,
    record: Record,
    vocabulary: Any = slice(None),
) -> None:
    """Decode greedily and compare the token and the logits of every step."""
    found = [run.logits, *(run.append(token_id) for token_id in token_ids[:-1])]
    assert [int(logits.argmax()) for logits in found] == token_ids
    check_near(np.stack(found)[:, vocabulary], step_logits, LOGITS, record)


@pytest.mark.parametrize("name", cases(GOLDEN, "logits"))
def test_logits_compact(
    compact: GoldenSet, model: phi_edge.Model, name: str, record_property: Record
) -> None:
    case = compact.manifest["logits"][name]
    crops = [
        model.preprocess(image, case["num_crops"]) for image in compact.images(case.get("images"))
    ]
    prompt = Prompt(compact.arrays[f"{name}__ids"], tuple(crops))
    assert prompt.num_tokens == case["length"]
    check_greedy(
        model.start(prompt),
        case["greedy_ids"],
        compact.arrays[f"{name}__step_logits"],
        record_property,
    )


@pytest.mark.parametrize("name", cases(DEV / "cases", "logits"))
def test_logits_dev(
    dev: GoldenSet, dev_model: phi_edge.Model, name: str, record_property: Record
) -> None:
    case = dev.manifest["logits"][name]
    prompt = dev_model.encode_prompt(
        case["text"], images=dev.images(case["images"]), num_crops=case["num_crops"]
    )
    np.testing.assert_array_equal(prompt.input_ids, dev.arrays[f"{name}__input_ids"])
    run = dev_model.start(prompt)
    check_near(run.logits, dev.arrays[f"{name}__last_full"], LOGITS, record_property)
    # At the crossing of 4,096 tokens the context is run again, image features kept.
    suffix = next(
        (f"_{mode}" for mode in ("recompute_kept", "recompute") if mode in case["modes"]), ""
    )
    token_ids = dev.arrays[f"{name}__greedy_ids{suffix}"].tolist()
    check_greedy(
        run,
        token_ids,
        dev.arrays[f"{name}__greedy_sub{suffix}"],
        record_property,
        dev.arrays["vocab_sub"],
    )
