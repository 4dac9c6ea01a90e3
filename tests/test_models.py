"""The native objects against those of the Azure SDK, whose contract they keep."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

import azure.ai.inference.models as sdk
import pytest
from PIL import Image

from phi_edge import models

Make = Callable[[Any], Any]

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ANSWER = {
    "id": "a1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "phi",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi", "tool_calls": [CALL]},
            "finish_reason": "length",
            "logprobs": {"content": []},
        }
    ],
    "usage": USAGE,
}
UPDATE = {
    "id": "a1",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "phi",
    "choices": [
        {
            "index": 0,
            "delta": {
                "role": "assistant",
                "content": "Hi",
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
            },
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
INFO = {"model_name": "phi", "model_type": "chat-completions", "model_provider_name": "x"}

# Each makes the same object with the classes of one module or of the other.
REQUEST_OBJECTS: dict[str, Make] = {
    "system": lambda m: m.SystemMessage(content="Be brief."),
    "system by position": lambda m: m.SystemMessage("Be brief."),
    "developer": lambda m: m.DeveloperMessage(content="Be brief."),
    "user": lambda m: m.UserMessage(content="Hi"),
    "user by position": lambda m: m.UserMessage("Hi"),
    "user with items": lambda m: m.UserMessage(
        content=[
            m.TextContentItem(text="What is it?"),
            m.ImageContentItem(image_url=m.ImageUrl(url="data:,", detail=m.ImageDetailLevel.HIGH)),
        ]
    ),
    "assistant": lambda m: m.AssistantMessage(content="Hello"),
    "assistant by position": lambda m: m.AssistantMessage("Hello"),
    "assistant with tools": lambda m: m.AssistantMessage(
        tool_calls=[
            m.ChatCompletionsToolCall(
                id="call_1", function=m.FunctionCall(name="f", arguments="{}")
            )
        ]
    ),
    "tool": lambda m: m.ToolMessage(content="7", tool_call_id="call_1"),
    "image": lambda m: m.ImageContentItem(image_url=m.ImageUrl(url="data:,")),
    "tool definition": lambda m: m.ChatCompletionsToolDefinition(
        function=m.FunctionDefinition(name="f", description="d", parameters={"type": "object"})
    ),
    "tool choice": lambda m: m.ChatCompletionsNamedToolChoice(
        function=m.ChatCompletionsNamedToolChoiceFunction(name="f")
    ),
    "schema": lambda m: m.JsonSchemaFormat(name="n", schema={"type": "object"}, strict=True),
}
ANSWER_OBJECTS: dict[str, Make] = {
    "answer": lambda m: m.ChatCompletions(ANSWER),
    "update": lambda m: m.StreamingChatCompletionsUpdate(UPDATE),
    "usage": lambda m: m.CompletionsUsage(USAGE),
    "info": lambda m: m.ModelInfo(INFO),
}


def assert_same(ours: Any, theirs: Any) -> None:
    """Every field of the SDK's object has the same value here, down to the leaves."""
    if hasattr(theirs, "as_dict"):
        assert ours.as_dict() == theirs.as_dict()
        for field in theirs._attr_to_rest_field:
            assert_same(getattr(ours, field), getattr(theirs, field))
        for key in theirs:
            assert key in ours
            assert_same(ours[key], ours.as_dict()[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, Enum):
        assert ours == theirs.value
        assert ours.name == theirs.name
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", [*REQUEST_OBJECTS, *ANSWER_OBJECTS])
def test_same_as_the_sdk(name: str) -> None:
    make = {**REQUEST_OBJECTS, **ANSWER_OBJECTS}[name]
    assert_same(make(models), make(sdk))


def test_same_names() -> None:
    """All that a chat uses; embeddings and audio the model has not."""
    other = ("Embedding", "Image", "Audio", "Input")
    theirs = {name for name in sdk.__all__ if not any(word in name for word in other)}
    theirs |= {"ImageContentItem", "ImageUrl", "ImageDetailLevel"}
    theirs -= {"StreamingChatCompletions", "AsyncStreamingChatCompletions"}
    assert theirs <= set(models.__all__)


@pytest.mark.parametrize(
    "name", [name for name in models.__all__ if issubclass(getattr(models, name), Enum)]
)
def test_same_enums(name: str) -> None:
    ours = {member.name: member.value for member in getattr(models, name)}
    if name != "ChatCompletionsResponseFormat":  # an older SDK's, which articles still use
        assert ours == {member.name: member.value for member in getattr(sdk, name)}
    assert ours


def test_attributes_and_keys_are_one_thing() -> None:
    answer = models.ChatCompletions(ANSWER)
    assert answer.choices[0].message.content == answer["choices"][0]["message"]["content"] == "Hi"
    assert answer.choices[0].finish_reason is models.CompletionsFinishReason.TOKEN_LIMIT_REACHED
    assert answer.created == datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
    assert answer["choices"][0]["logprobs"] == {"content": []}
    assert json.loads(str(answer)) == ANSWER
    message = models.UserMessage("Hi")
    message.content = "Bye"
    assert message["content"] == "Bye"
    assert "Bye" in repr(message)
    assert message == models.UserMessage(content="Bye")
    del message["content"]
    assert message.content is None


def test_an_image_by_its_older_name() -> None:
    url = models.ImageUrl(url="data:,")
    assert models.ImageContentItem(image=url) == models.ImageContentItem(image_url=url)


def test_unknown_fields_are_kept_and_known_ones_optional() -> None:
    assert models.CompletionsUsage({"prompt_tokens": 1, "more": 2})["more"] == 2
    assert models.AssistantMessage().content is None


def test_too_many_positions() -> None:
    with pytest.raises(TypeError):
        models.UserMessage("one", "two")
    with pytest.raises(TypeError):
        models.TextContentItem("no position here")


def test_image_url_load(tmp_path: Path) -> None:
    """As the SDK's."""
    path = tmp_path / "photo.png"
    Image.new("RGB", (4, 4), "red").save(path)
    ours = models.ImageUrl.load(image_file=path, image_format="png", detail="low")
    theirs = sdk.ImageUrl.load(image_file=str(path), image_format="png", detail="low")
    assert ours.as_dict() == theirs.as_dict()
