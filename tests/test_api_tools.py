"""Tools: that have to be called, that may be, and that were."""

from __future__ import annotations

import json

import pytest

from phi_edge.api.parse import parse_request
from phi_edge.api.service import ChatService

from .helpers.requests import (
    USER,
    WEATHER,
    body,
    complete,
    text,
)


@pytest.mark.parametrize(
    "tool_choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
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
