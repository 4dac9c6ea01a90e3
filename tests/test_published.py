"""Packages that others have published run as they are, and give what they give elsewhere."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image

import phi_edge
from phi_edge import ChatCompletionsClient, EngineError, OutOfMemoryError, Prompt, package
from phi_edge.engine.vision import VisionEncoder, encode_image
from phi_edge.image.crops import ImageCrops
from phi_edge.models import ImageContentItem, ImageUrl, TextContentItem, UserMessage
from phi_edge.planning.memory import predict_needs
from phi_edge.text.prompt import chat_text

from .conftest import GoldenSet
from .helpers.genai import NUM_CROPS, genai_tokens_of_ids
from .helpers.published import (
    BOUNDARY,
    CPU,
    GPU,
    OLD,
    UNIFIED,
    edit_graph,
    graph_file,
    large_package,
    wide_image,
    with_slots,
)
from .helpers.requests import data_url
from .helpers.sequences import EXACT, greedy_tokens, random_ids
from .helpers.sessions import Intercepted

ALL = [CPU, GPU, UNIFIED, OLD]
FROM_GENAI = [CPU, GPU, UNIFIED]

Load = Callable[[str], phi_edge.Model]


@pytest.fixture(scope="module")
def load(published: Callable[[str], Path]) -> Iterator[Load]:
    """Models of the packages; each is loaded once."""
    with ExitStack() as stack:

        @functools.cache
        def load(name: str) -> phi_edge.Model:
            return stack.enter_context(phi_edge.load_model(published(name), provider="cpu"))

        yield load


# Tokens are those of onnxruntime-genai


@pytest.mark.parametrize("name", FROM_GENAI)
def test_greedy_tokens_are_those_of_onnxruntime_genai(
    published: Callable[[str], Path], load: Load, name: str
) -> None:
    """On both sides of the change of RoPE factors; it has to prefill in one go for that."""
    for length in (40, BOUNDARY + 40):
        ids = random_ids(length)
        assert greedy_tokens(load(name), Prompt(ids)) == genai_tokens_of_ids(published(name), ids)


@pytest.mark.parametrize("name", FROM_GENAI)
def test_greedy_tokens_to_an_image_are_those_of_onnxruntime_genai(
    published: Callable[[str], Path], load: Load, name: str
) -> None:
    """It gets the crops padded to 17, as it pads them itself."""
    prompt = with_slots([wide_image(load(name).manifest.model)])
    expected = genai_tokens_of_ids(published(name), prompt.input_ids, prompt.images)
    assert greedy_tokens(load(name), prompt) == expected


@pytest.mark.parametrize("name", FROM_GENAI)
def test_the_engine_genai_gives_the_same_tokens(
    published: Callable[[str], Path], load: Load, name: str
) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")
    prompts = [
        Prompt(random_ids(BOUNDARY - 3)),
        with_slots([wide_image(load(name).manifest.model)]),
    ]
    with phi_edge.load_model(published(name), provider="cpu", engine="genai") as theirs:
        for prompt in prompts:
            assert greedy_tokens(theirs, prompt) == greedy_tokens(load(name), prompt)


def test_the_engine_genai_says_what_it_does_not_run(published: Callable[[str], Path]) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")
    said = "layout of onnxruntime-genai of May 2024: since release 0.5 it wants an embedding graph"
    with pytest.raises(EngineError, match=said):
        phi_edge.load_model(published(OLD), engine="genai")


def test_two_images_as_onnxruntime_genai_has_them(compact: GoldenSet) -> None:
    folder = large_package()
    with phi_edge.load_model(folder) as model:
        images = [
            model.preprocess(compact.image(name), num_crops)
            for name, num_crops in (("wide_90x60", 4), ("tall_50x170", 3))
        ]
        prompt = with_slots(images)
        expected = genai_tokens_of_ids(folder, prompt.input_ids, images, num_crops=5)
        assert greedy_tokens(model, prompt) == expected


# Images


@pytest.mark.parametrize("name", ALL)
def test_features_are_near_to_those_of_the_weights_in_fp32(
    load: Load, model: phi_edge.Model, compact: GoldenSet, name: str
) -> None:
    """Of crops in their order, in an image that is wider than high."""
    crops = model.preprocess(compact.image("wide_90x60"), 6)
    assert crops.image_size == (2 * 336, 3 * 336)
    found, expected = load(name).encode_image(crops), model.encode_image(crops)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(expected)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def vision_of(folder: Path) -> VisionEncoder:
    return VisionEncoder(folder, package.read_package(folder), "cpu")


@pytest.mark.parametrize("name", ALL)
def test_crops_need_no_padding(published: Callable[[str], Path], load: Load, name: str) -> None:
    crops, session = wide_image(load(name).manifest.model), vision_of(published(name)).session
    padded = encode_image(session, crops, min_crops=NUM_CROPS)
    np.testing.assert_allclose(encode_image(session, crops), padded, rtol=0, atol=EXACT)


class CountingSession:
    """A session of the vision graph that notes the crops of each run, as `num_crops`.

    Attributes:
        takes: The only number that it takes, if there is one.
    """

    def __init__(self, session: Any, takes: int | None = None) -> None:
        self.session = session
        self.takes = takes
        self.num_crops: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, names: None, feeds: dict[str, npt.NDArray[Any]], options: Any) -> Any:
        self.num_crops.append(feeds[package.PIXEL_VALUES].shape[1])
        if self.takes not in (None, self.num_crops[-1]):
            raise RuntimeError("Reshape: the input has another size")
        return self.session.run(names, feeds, options)


def images(model: phi_edge.Model) -> list[ImageCrops]:
    """Two, of three crops and of two."""
    noises = (Image.effect_noise((670, 300), 90), Image.effect_noise((300, 300), 50))
    return [model.preprocess(noise.convert("RGB"), 2) for noise in noises]


def test_a_graph_that_says_it_takes_17_crops_gets_them(load: Load, published_copy: Path) -> None:
    def fix_crops(graph: onnx.ModelProto) -> None:
        graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = NUM_CROPS

    edit_graph(graph_file(published_copy, package.VISION), fix_crops)
    described = package.read_package(published_copy)
    assert predict_needs(described, 1, [(336, 336)]).total_crops == NUM_CROPS
    model, vision = load(CPU), VisionEncoder(published_copy, described, "cpu")
    vision.session = counting = CountingSession(vision.session)
    for crops in images(model):
        expected = model.encode_image(crops)
        np.testing.assert_allclose(vision.encode(crops), expected, rtol=0, atol=EXACT)
    assert counting.num_crops == [NUM_CROPS, NUM_CROPS]


def test_a_graph_that_refuses_crops_gets_17(load: Load, published: Callable[[str], Path]) -> None:
    """What it refuses once, it is not asked again."""
    model = load(CPU)
    vision = vision_of(published(CPU))
    vision.session = counting = CountingSession(vision.session, takes=NUM_CROPS)
    for crops in images(model):
        expected = model.encode_image(crops)
        np.testing.assert_allclose(vision.encode(crops), expected, rtol=0, atol=EXACT)
    assert counting.num_crops == [3, NUM_CROPS, NUM_CROPS]


def test_a_graph_that_took_crops_is_not_given_others(
    load: Load, published: Callable[[str], Path]
) -> None:
    model = load(CPU)
    vision = vision_of(published(CPU))
    vision.session = counting = CountingSession(vision.session)
    first, second = images(model)
    vision.encode(first)
    counting.takes = NUM_CROPS
    with pytest.raises(EngineError, match="another size"):
        vision.encode(second)
    counting.takes = None
    vision.encode(second)
    assert counting.num_crops == [3, 2, 2]


@pytest.mark.parametrize(
    ("message", "error", "num_runs"),
    [("no such kernel", EngineError, 2), ("std::bad_alloc", OutOfMemoryError, 1)],
)
def test_what_is_not_about_crops_is_said(
    published: Callable[[str], Path],
    load: Load,
    message: str,
    error: type[Exception],
    num_runs: int,
) -> None:
    """Without memory for a few crops, there is none for 17."""
    runs = []

    def fail(*_: object) -> None:
        runs.append(1)
        raise RuntimeError(message)

    crops, vision = wide_image(load(CPU).manifest.model), vision_of(published(CPU))
    session = vision.session
    vision.session = Intercepted(session, fail)
    with pytest.raises(error, match=f"encoding an image failed: {message}") as caught:
        vision.encode(crops)
    assert type(caught.value) is error
    assert len(runs) == num_runs
    vision.session = session
    np.testing.assert_array_equal(vision.encode(crops), load(CPU).encode_image(crops))


# Answers


SCHEMA = {
    "type": "object",
    "properties": {"sea": {"enum": ["blue", "grey"]}},
    "required": ["sea"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", ALL)
def test_an_answer_in_json(load: Load, name: str) -> None:
    prompt = load(name).encode_prompt(chat_text([("user", "Of which colour is the sea?")]))
    events = list(load(name).generate(prompt, json_schema=SCHEMA, max_tokens=40))
    assert json.loads("".join(event.text for event in events))["sea"] in ("blue", "grey")
    assert events[-1].finish_reason == "stop"


def test_the_client(published: Callable[[str], Path], load: Load) -> None:
    image = Image.effect_noise((300, 300), 50).convert("RGB")
    content = [
        ImageContentItem(image_url=ImageUrl(url=data_url(image), detail="low")),
        TextContentItem(text="What is it?"),
    ]
    model = load(CPU)
    prompt = model.encode_prompt(
        chat_text([("user", "<|image_1|>\nWhat is it?")]), [image], num_crops=1
    )
    events = list(model.generate(prompt, max_tokens=5))
    with ChatCompletionsClient(published(CPU)) as client:
        answer = client.complete(messages=[UserMessage(content=content)], max_tokens=5)
        assert client.get_model_info().model_name == "Phi-3.5-vision-Instruct"
    assert answer.choices[0].message.content == "".join(event.text for event in events)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt.num_tokens, len(events))
    assert usage.total_tokens == prompt.num_tokens + len(events)
