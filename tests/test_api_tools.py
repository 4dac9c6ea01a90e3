"""Tools: that have to be called, that may be, and that were."""

from __future__ import annotations

import json
from typing import Any

import pytest

from phi_edge.api.parse import parse_request
from phi_edge.api.pieces import CallReader, Piece
from phi_edge.api.response import Choice, FinishReason
from phi_edge.api.service import ChatService

from .helpers.requests import (
    USER,
    WEATHER,
    Body,
    body,
    complete,
    streamed_text,
    text,
)

TIDES: Body = {"type": "function", "function": {**WEATHER["function"], "name": "tides"}}
NAMED: Body = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("tool_choice", ["required", NAMED])
def test_a_tool_that_has_to_be_called(service: ChatService, tool_choice: object) -> None:
    answer = complete(service, tools=[WEATHER], tool_choice=tool_choice, max_tokens=80)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"] or []
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
    request = parse_request(
        body(tools=[WEATHER], tool_choice=tool_choice, max_tokens=80, stream=True)
    )
    *_, before_last, last = service.stream(request)
    (streamed,) = before_last["choices"][0]["delta"]["tool_calls"]
    assert streamed["function"] == call["function"]
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_arguments_are_an_object(service: ChatService) -> None:
    """Where the schema does not say so, too."""
    schema = {
        "properties": {"at": {"const": "Rome"}},
        "required": ["at"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    answer = complete(service, tools=[tool], tool_choice="required", max_tokens=80)
    (call,) = answer["choices"][0]["message"]["tool_calls"] or []
    assert call["function"] == {"name": "look", "arguments": '{"at": "Rome"}'}
    either = {**tool, "function": {"name": "look", "parameters": {"type": ["object", "null"]}}}
    answer = complete(service, tools=[either], tool_choice="required", max_tokens=40)
    (call,) = answer["choices"][0]["message"]["tool_calls"] or []
    assert call["function"]["arguments"].startswith("{")


def cut_short(service: ChatService, **fields: Any) -> list[Choice]:
    """The choices of a call that has to be made, for each number of tokens that is too few."""
    whole = complete(service, max_tokens=80, **fields)
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    num_tokens = whole["usage"]["completion_tokens"]
    answers = [complete(service, max_tokens=limit, **fields) for limit in range(1, num_tokens)]
    assert all(answer["choices"][0]["finish_reason"] == "length" for answer in answers)
    return [answer["choices"][0] for answer in answers] + whole["choices"]


@pytest.mark.parametrize(
    ("tools", "tool_choice"), [([WEATHER], "required"), ([TIDES, WEATHER], NAMED)]
)
def test_a_call_that_is_cut_short(
    service: ChatService, tools: list[Body], tool_choice: object
) -> None:
    """Its name is known before the model says it."""
    choices = cut_short(service, tools=tools, tool_choice=tool_choice)
    calls = [(choice["message"]["tool_calls"] or [])[0]["function"] for choice in choices]
    assert all(choice["message"]["content"] is None for choice in choices)
    assert all(call["name"] == "weather" for call in calls)
    arguments = [call["arguments"] for call in calls]
    assert all(arguments[-1].startswith(each) for each in arguments)
    assert arguments[0] == ""
    assert '{"city": "' in arguments


def test_a_call_whose_name_is_cut(service: ChatService) -> None:
    """With two tools, it is nobody's call; what is there of it is not shown."""
    choices = cut_short(service, tools=[WEATHER, TIDES], tool_choice="required")
    named = [choice["message"] for choice in choices if choice["message"]["tool_calls"]]
    nameless = [choice["message"] for choice in choices if not choice["message"]["tool_calls"]]
    assert len({(each["tool_calls"] or [])[0]["function"]["name"] for each in named}) == 1
    assert all(message["content"] is None for message in named)
    assert [message["content"] for message in nameless] == [""] * len(nameless)
    assert len(nameless) > 1
    assert len(named) > 2


@pytest.mark.parametrize("max_tokens", [4, 30])
@pytest.mark.parametrize("tools", [[WEATHER], [WEATHER, TIDES]])
def test_a_stream_of_a_call_that_is_cut_short(
    service: ChatService, tools: list[Body], max_tokens: int
) -> None:
    fields = {
        "tools": tools,
        "tool_choice": "required",
        "max_tokens": max_tokens,
        "logprobs": True,
    }
    (whole,) = complete(service, **fields)["choices"]
    chunks = list(service.stream(parse_request(body(stream=True, **fields))))
    assert streamed_text(chunks) == ""
    choices = [chunk["choices"][0] for chunk in chunks]
    streamed = [call for each in choices for call in each["delta"].get("tool_calls", [])]
    calls = whole["message"]["tool_calls"] or []
    assert [call["function"] for call in streamed] == [call["function"] for call in calls]
    assert [each["finish_reason"] for each in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == "length"
    for entries in (
        [entry for each in choices for entry in (each["logprobs"] or {"content": []})["content"]],
        (whole["logprobs"] or {"content": []})["content"],
    ):
        assert len(entries) == max_tokens


def test_a_call_that_a_stop_string_cuts(service: ChatService) -> None:
    answer = complete(
        service, tools=[WEATHER], tool_choice="required", stop="city", max_tokens=80
    )  # fmt: skip
    (choice,) = answer["choices"]
    (call,) = choice["message"]["tool_calls"] or []
    assert call["function"] == {"name": "weather", "arguments": '{"'}
    assert choice["finish_reason"] == "length"


CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
CUT = CALL.removesuffix('me"}}')


@pytest.mark.parametrize(
    ("said", "finish_reason", "arguments", "told"),
    [
        (CALL, "stop", '{"city": "Rome"}', "tool_calls"),
        (CALL, "length", '{"city": "Rome"}', "length"),
        (CALL[:-1], "length", '{"city": "Rome"}', "length"),
        (f'{CALL[:-1]}, "why": "it', "length", '{"city": "Rome"}', "length"),
        (CUT, "length", '{"city": "Ro', "length"),
        (CUT, "content_filter", '{"city": "Ro', "content_filter"),
        ('\n{ "name":"weather","arguments":{', "length", "{", "length"),
        (CUT, "stop", None, "stop"),
        (CUT.partition('{"city')[0], "length", None, "length"),
        (CALL[:14], "length", None, "length"),
        (CUT.replace("weather", "wind"), "length", None, "length"),
        (f"{CALL} I hope", "length", None, "length"),
        (f"{CALL} I hope this helps.", "stop", None, "stop"),
        ('{"name": ["weather"], "arguments": {}}', "stop", None, "stop"),
        ('{"name": "weather", "arguments": ' + "[" * 100_000, "length", None, "length"),
    ],
)
def test_what_is_a_call_among_what_is_said(
    said: str, finish_reason: FinishReason, arguments: str | None, told: str
) -> None:
    reader = CallReader(parse_request(body(tools=[WEATHER])))
    texts = [said[:20], said[20:]]
    pieces = [piece for text in texts for piece in reader.add(Piece(text))]
    pieces += reader.add(Piece(finish_reason=finish_reason))
    calls = [piece.tool_call["function"] for piece in pieces if piece.tool_call]
    wanted = [] if arguments is None else [{"name": "weather", "arguments": arguments}]
    assert calls == wanted
    assert "".join(piece.text for piece in pieces) == ("" if wanted else said)
    assert pieces[-1].finish_reason == told


def test_a_tool_that_may_be_called(service: ChatService) -> None:
    """What is no call comes as text, and `none` keeps the tools from the prompt."""
    free = complete(service, tools=[WEATHER], max_tokens=8)
    assert free["choices"][0]["message"]["tool_calls"] is None
    assert text(free)
    without = complete(service, tools=[WEATHER], tool_choice="none")
    assert without["usage"] == complete(service)["usage"]


def test_a_tool_call_and_its_result_in_the_conversation(service: ChatService) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    }
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ]
    assert complete(service, messages=messages, tools=[WEATHER])["choices"]
