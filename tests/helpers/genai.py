"""What onnxruntime-genai itself makes of a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TEXT = "<|user|>\nWhat is the sea?<|end|>\n<|assistant|>\n"
NUM_TOKENS = 8


def genai_tokens(folder: Path, prompt: str, image_path: str | None = None) -> list[int]:
    """Greedy tokens of onnxruntime-genai; skips the test where it is not installed."""
    og: Any = pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")
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
