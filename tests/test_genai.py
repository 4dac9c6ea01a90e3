"""A package is also a model folder of onnxruntime-genai, and gives the same tokens there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import phi_edge

from .conftest import Exporter, GoldenSet

og: Any = pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")

TEXT = "<|user|>\nWhat is the sea?<|end|>\n<|assistant|>\n"
ONE_IMAGE = "<|user|>\n<|image_1|>\nWhat is it?<|end|>\n<|assistant|>\n"
NUM_TOKENS = 8


def genai_tokens(folder: Path, prompt: str, image_path: str | None = None) -> list[int]:
    """Greedy tokens of onnxruntime-genai."""
    model = og.Model(str(folder))
    processor = model.create_multimodal_processor()
    images = og.Images.open(image_path) if image_path else None
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=4000, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.set_inputs(processor(_with_bos(prompt), images=images))
    tokens = []
    for _ in range(NUM_TOKENS):
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
        if generator.is_done():
            break
    return tokens


def _with_bos(prompt: str) -> str:
    """Spell out the BOS of every piece, which onnxruntime-genai's tokenizer does not add."""
    return "<s>" + prompt.replace("<|image_1|>", "<|image_1|><s>")


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
