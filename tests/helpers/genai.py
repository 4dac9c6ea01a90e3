"""What onnxruntime-genai itself makes of a package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from phi_edge import package
from phi_edge.image.crops import ImageCrops

TEXT = "<|user|>\nWhat is the sea?<|end|>\n<|assistant|>\n"
NUM_TOKENS = 8
# The most that an image has, the global one included.
NUM_CROPS = 17


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
    return _next_tokens(generator)


def genai_tokens_of_ids(
    folder: Path,
    input_ids: npt.NDArray[np.int64],
    images: Sequence[ImageCrops] = (),
    num_crops: int = NUM_CROPS,
) -> list[int]:
    """The same, for token ids, of which negative ones are image slots, and pixels.

    Images are padded to so many crops; to the most, as onnxruntime-genai's own processor does it.
    """
    og: Any = pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(input_ids) + NUM_TOKENS, do_sample=False)
    generator = og.Generator(model, parameters)
    inputs = og.NamedTensors()
    inputs["input_ids"] = input_ids.astype(np.int32)[None]
    if images:
        dtype = package.read_package(folder).model.io_dtype
        pixels = np.zeros((len(images), num_crops, 3, 336, 336), dtype)
        for padded, crops in zip(pixels, images, strict=True):
            padded[: len(crops.pixel_values)] = crops.pixel_values
        inputs["pixel_values"] = pixels
        inputs["image_sizes"] = np.array([crops.image_size for crops in images], np.int64)
        counts = [[crops.num_tokens] for crops in images]
        inputs["num_image_tokens"] = np.array(counts, np.int64)
    generator.set_inputs(inputs)
    return _next_tokens(generator)


def _next_tokens(generator: Any) -> list[int]:
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
