"""The native objects against those of the Azure SDK, whose contract they keep."""

from __future__ import annotations

import copy
import json
import pickle
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


def test_no_position() -> None:
    with pytest.raises(TypeError, match="a mapping or keywords"):
        models.TextContentItem("no position here")


def test_wrong_values_are_left_for_the_request_to_refuse() -> None:
    for content in (5, ["Hi"], {"text": "Hi"}):
        assert models.UserMessage(content=content).as_dict()["content"] == content
    assert models.ImageContentItem(image_url="data:,")["image_url"] == "data:,"


def test_image_url_load(tmp_path: Path) -> None:
    """As the SDK's."""
    path = tmp_path / "photo.png"
    Image.new("RGB", (4, 4), "red").save(path)
    ours = models.ImageUrl.load(image_file=path, image_format="png", detail="low")
    theirs = sdk.ImageUrl.load(image_file=str(path), image_format="png", detail="low")
    assert ours.as_dict() == theirs.as_dict()


def _answer(m: Any) -> Any:
    return m.ChatCompletions(json.loads(json.dumps(ANSWER)))


def _update(m: Any) -> Any:
    return m.StreamingChatCompletionsUpdate(json.loads(json.dumps(UPDATE)))


def _message(m: Any) -> Any:
    return _answer(m).choices[0].message


def _question(m: Any) -> Any:
    url = m.ImageUrl(url="data:,", detail="high")
    return m.UserMessage(
        content=[m.TextContentItem(text="What?"), m.ImageContentItem(image_url=url)]
    )


def _set(target: Any, name: str, value: Any) -> Any:
    return setattr(target, name, value)


def _made_answer(m: Any, **fields: Any) -> Any:
    """An answer as tests of a program make one."""
    message = m.ChatResponseMessage(role=m.ChatRole.ASSISTANT, content="Hi")
    choice = m.ChatChoice(index=0, finish_reason="stop", message=message)
    made = datetime(2024, 1, 1, tzinfo=timezone.utc)
    usage = m.CompletionsUsage(USAGE)
    answer = {"id": "a", "created": made, "model": "phi", "choices": [choice], "usage": usage}
    return m.ChatCompletions(**{**answer, **fields})


def _subclass(m: Any) -> Any:
    return type("Question", (m.UserMessage,), {})


# What each gives is shown alike, or is refused with the same words.
SHOWN: dict[str, Make] = {
    "print a role": lambda m: str(_message(m).role),
    "an f-string of a role": lambda m: f"{_message(m).role}|{_message(m).role:>20}",
    "a role in upper case": lambda m: _message(m).role.upper(),
    "a role as a key": lambda m: {"assistant": 1}[_message(m).role],
    "a role in JSON": lambda m: json.dumps(_message(m).role),
    "repr of a role": lambda m: _message(m).role,
    "a role by name": lambda m: (m.ChatRole["user"], m.ChatRole.user, m.ChatRole("tool")),
    "a role that is not there": lambda m: m.ChatRole("guest"),
    "all roles": lambda m: [str(role) for role in m.ChatRole],
    "an unknown role of an answer": lambda m: m.ChatResponseMessage({"role": "guest"}).role,
    "a finish reason": lambda m: f"{_answer(m).choices[0].finish_reason}",
    "an unknown finish reason": lambda m: m.ChatChoice({"finish_reason": "odd"}).finish_reason,
    "a reason that is not there yet": lambda m: m.StreamingChatChoiceUpdate({}).finish_reason,
    "print usage": lambda m: str(_answer(m).usage),
    "an f-string of usage": lambda m: f"{_answer(m).usage}",
    "repr of usage": lambda m: _answer(m).usage,
    "print an answer": lambda m: str(_answer(m)),
    "repr of an answer": _answer,
    "print an update": lambda m: str(_update(m)),
    "repr of an update": _update,
    "a delta's role": lambda m: f"{_update(m).choices[0].delta.role}",
    "choices": lambda m: _answer(m).choices,
    "a message": lambda m: str(_message(m)),
    "tool calls": lambda m: _message(m).tool_calls[0].function.name,
    "log probabilities": lambda m: _answer(m).choices[0]["logprobs"],
    "log probabilities as an attribute": lambda m: _answer(m).choices[0].logprobs,
    "time": lambda m: (_answer(m).created, _answer(m)["created"]),
    "items by key": lambda m: _answer(m)["choices"][0]["message"].content,
    "kinds of items by key": lambda m: type(_answer(m)["choices"][0]["message"]).__name__,
    "items": lambda m: list(_answer(m).items()),
    "a key that is not there": lambda m: _answer(m)["nothing"],
    "an attribute that is not there": lambda m: _answer(m).nothing,
    "get": lambda m: (_answer(m).get("nothing", 4), "usage" in _answer(m), len(_answer(m))),
    "as_dict": lambda m: _answer(m).as_dict(exclude_readonly=True),
    "dict": lambda m: dict(**_answer(m).usage),
    "json.dumps of as_dict": lambda m: json.dumps(_answer(m).as_dict()),
    "json.dumps of an answer": lambda m: json.dumps(_answer(m)),
    "pickling": lambda m: str(pickle.loads(pickle.dumps(_answer(m)))),  # noqa: S301 - its own
    "a pickled copy's attribute": lambda m: (
        pickle.loads(pickle.dumps(_answer(m))).choices[0].message.content  # noqa: S301
    ),
    "copies": lambda m: (copy.deepcopy(_answer(m)) == _answer(m), copy.copy(_message(m)).content),
    "equality": lambda m: [
        _answer(m) == _answer(m),
        _answer(m).usage == USAGE,
        _answer(m).usage == {"prompt_tokens": 3},
        _answer(m).usage != _answer(m).usage,
        _answer(m).usage == 3,
        m.UserMessage("a") == m.AssistantMessage("a"),
    ],
    "hash": lambda m: hash(_answer(m)),
    "one list of choices": lambda m: [each.choices is each.choices for each in [_answer(m)]],
    "set an attribute": lambda m: [
        (_set(each.usage, "prompt_tokens", 9), each["usage"]["prompt_tokens"], each.usage)
        for each in [_answer(m)]
    ],
    "set an attribute that is no field": lambda m: [
        (_set(each.usage, "mine", 9), each.usage.mine, each) for each in [_answer(m)]
    ],
    "set an item": lambda m: [
        (each["choices"][0]["message"].update(content="Z"), each.choices[0].message.content)
        for each in [_answer(m)]
    ],
    "an answer that a program makes": _made_answer,
    "print an answer that a program makes": lambda m: str(_made_answer(m)),
    "its time": lambda m: (_made_answer(m).created, _made_answer(m)["created"]),
    "set an attribute to None": lambda m: [
        (_set(each, "tool_calls", None), each, "tool_calls" in each) for each in [_message(m)]
    ],
    "set an attribute to None that is not there": lambda m: [
        (_set(each, "detail", None), each) for each in [m.ImageUrl(url="data:,")]
    ],
    "a class of a program's own": lambda m: (_subclass(m)("Hi"), _subclass(m)(content="Hi")),
    "a question": _question,
    "a question's JSON": lambda m: json.dumps(_question(m).as_dict()),
    "a question's keys": lambda m: list(_question(m)),
    "a question's role": lambda m: (_question(m).role, f"{_question(m).role}"),
    "an image's detail": lambda m: f"{m.ImageUrl(url='data:,', detail='high').detail}",
    "an answer goes on": lambda m: m.AssistantMessage(
        content=_message(m).content, tool_calls=_message(m).tool_calls
    ),
    "a field by another name": lambda m: m.UserMessage(contents="Hi"),
    "content twice": lambda m: m.UserMessage("Hi", content="Hi"),
    "too many positions": lambda m: m.UserMessage("Hi", "you"),
    "a model": lambda m: (m.ModelInfo(INFO), f"{m.ModelInfo(INFO).model_type}"),
    "a schema": lambda m: m.JsonSchemaFormat(name="n", schema={"type": "object"}, strict=True),
    "a choice of tools": lambda m: f"{m.ChatCompletionsToolChoicePreset.REQUIRED}",
}


def show(make: Make, module: Any) -> str:
    try:
        return repr(make(module))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is to be the same
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("what", SHOWN)
def test_shown_as_the_sdk_shows_it(what: str) -> None:
    assert show(SHOWN[what], models) == show(SHOWN[what], sdk)
