"""A package is also a model folder of onnxruntime-genai, and gives the same tokens there."""

from __future__ import annotations

from pathlib import Path

import pytest

import phi_edge

from .conftest import Exporter, GoldenSet
from .helpers.genai import NUM_TOKENS, TEXT, genai_tokens

pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")

ONE_IMAGE = "<|user|>\n<|image_1|>\nWhat is it?<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_text_prompt(export_compact: Exporter, precision: str) -> None:
    folder = export_compact(precision)
    with phi_edge.load_model(folder) as model:
        events = model.generate(model.encode_prompt(TEXT), max_tokens=NUM_TOKENS)
        ours = [event.token_id for event in events]
    assert genai_tokens(folder, TEXT) == ours


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("size", [(1344, 1344), (1008, 672)])
def test_one_image_prompt(
    compact: GoldenSet,
    export_compact: Exporter,
    tmp_path: Path,
    precision: str,
    size: tuple[int, int],
) -> None:
    """Its image processor always uses 16 crops, whatever the configuration says."""
    image = compact.image("wide_90x60").convert("RGB").resize(size)
    image.save(tmp_path / "image.png")
    folder = export_compact(precision)
    with phi_edge.load_model(folder) as model:
        prompt = model.encode_prompt(ONE_IMAGE, [image], num_crops=16)
        ours = [event.token_id for event in model.generate(prompt, max_tokens=NUM_TOKENS)]
    assert genai_tokens(folder, ONE_IMAGE, str(tmp_path / "image.png")) == ours
