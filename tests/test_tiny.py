"""phi-edge-tiny, the model in the box: what it answers is judged by its meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import phi_edge
from benchmarks.quality.evaluate import compare, evaluate, select_questions
from benchmarks.quality.questions import make_example
from benchmarks.quality.samples import write_samples
from export import Checkpoint, encode_samples, export_package
from phi_edge import ChatCompletionsClient
from phi_edge.evaluation.samples import read_samples
from phi_edge.image.files import open_image
from phi_edge.loading import BUNDLED_MODEL
from phi_edge.models import (
    AssistantMessage,
    ChatRequestMessage,
    ImageContentItem,
    ImageUrl,
    JsonSchemaFormat,
    TextContentItem,
    UserMessage,
)
from phi_edge.package import read_manifest
from quantize import make_recipe

from .helpers.cli import run_cli

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "benchmarks" / "quality" / "checkpoint"
CHART = ROOT / "examples" / "chart.png"


@pytest.fixture(scope="module")
def client() -> Iterator[ChatCompletionsClient]:
    with ChatCompletionsClient() as client:
        yield client


def about_the_chart(question: str) -> UserMessage:
    image = ImageContentItem(image_url=ImageUrl.load(image_file=CHART, image_format="png"))
    return UserMessage(content=[TextContentItem(text=question), image])


def test_the_first_command() -> None:
    done = run_cli("chat", "--image", CHART, "Which bar is the tallest?")
    assert done.returncode == 0
    assert done.stdout == "The green bar.\n"


def test_the_chart_is_one_that_was_not_learned() -> None:
    (image,) = make_example("held_out", 34).images()
    assert np.array_equal(np.asarray(open_image(CHART)), np.asarray(image))


def test_a_conversation_about_an_image(client: ChatCompletionsClient) -> None:
    messages: list[ChatRequestMessage] = [about_the_chart("Which bar is the tallest?")]
    first = client.complete(messages=messages).choices[0].message.content
    assert first == "The green bar."
    messages += [
        AssistantMessage(content=first),
        UserMessage(content="Which bar is the lowest?"),
    ]
    stream = client.complete(messages=messages, stream=True)
    pieces = [update.choices[0].delta.content or "" for update in stream if update.choices]
    assert "".join(pieces) == "The purple bar."


def test_json_about_an_image(client: ChatCompletionsClient) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["green", "pink", "blue", "orange", "purple"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    response = client.complete(
        messages=[about_the_chart("What colour is the tallest bar? Answer as JSON.")],
        response_format=JsonSchemaFormat(name="answer", schema=schema, strict=True),
    )
    assert json.loads(response.choices[0].message.content) == {"answer": "green"}


def test_what_it_is_sure_of_has_a_high_probability(client: ChatCompletionsClient) -> None:
    response = client.complete(
        messages=[UserMessage(content="What is the capital of France?")],
        model_extras={"logprobs": True},
    )
    assert response.choices[0].message.content == "Paris."
    tokens = response.choices[0]["logprobs"]["content"]
    assert min(token["logprob"] for token in tokens) > -0.1


def test_held_out_questions() -> None:
    """A bound well below what the evaluation finds on thousands."""
    tasks = ("colour", "number", "word", "tallest", "facts")
    questions = [question for question in select_questions(10) if question.task in tasks]
    with phi_edge.load_model() as model:
        assert evaluate(model, questions)["all"].accuracy > 0.7


def test_the_package_comes_from_the_checkpoint(tmp_path: Path) -> None:
    """By the exporter, with the recipe that the manifest names."""
    manifest = read_manifest(BUNDLED_MODEL)
    made = manifest.recipe["quantizers"]["decoder"]
    recipe = make_recipe(
        manifest.precision, manifest.provider, method=made["method"], block_size=made["block_size"]
    )
    assert recipe.as_dict()["quantizers"]["decoder"] == made
    checkpoint = Checkpoint(CHECKPOINT)
    write_samples(tmp_path / "samples", "train", 100)
    samples = encode_samples(checkpoint, read_samples(tmp_path / "samples"))
    again = export_package(checkpoint, tmp_path / "package", recipe, samples=samples)
    assert again.source == manifest.source
    assert again.model == manifest.model
    questions = [question for question in select_questions(3) if question.task == "colour"]
    with phi_edge.load_model() as model, phi_edge.load_model(tmp_path / "package") as reference:
        agreement = compare(model, reference, questions)
    # To the byte where the processor adds in the same order; calibration adds a great deal.
    assert agreement.kl < 2e-3


def test_it_says_what_it_is() -> None:
    assert read_manifest(BUNDLED_MODEL).name == "phi-edge-tiny"
    card = (BUNDLED_MODEL / "README.md").read_text(encoding="utf-8")
    assert "not Phi-3.5" in card
    assert sum(path.stat().st_size for path in BUNDLED_MODEL.iterdir()) < 8e6
