"""What a request may say, and how it is told what is wrong."""

from __future__ import annotations

import json

import pytest

from phi_edge import HttpResponseError
from phi_edge.api.parse import AZURE_FIELDS, parse_request
from phi_edge.api.request import ChatRequest
from phi_edge.api.service import ChatService

from .helpers.requests import (
    USER,
    WEATHER,
    Body,
    body,
    complete,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", float("nan")),
        ("top_p", 1.1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_completion_tokens", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", "x"),
        ("stop", [1]),
        ("stream", "yes"),
        ("n", 0),
        ("n", 129),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {"300000": 1}),
        ("messages", []),
        ("messages", "Hi"),
        ("messages", [{"role": "nobody", "content": "Hi"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": [{"type": "video"}]}]),
        ("tools", [{"type": "function", "function": {"name": "no spaces"}}]),
        ("tool_choice", "perhaps"),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
    ],
)
def test_a_wrong_field_is_named(service: ChatService, field: str, value: object) -> None:
    with pytest.raises(HttpResponseError) as raised:
        complete(service, **{field: value})
    assert raised.value.status_code == 400
    assert (raised.value.param or "").startswith(field)
    assert raised.value.error.message.startswith(field)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"stop": ["x", ""]}, "stop string"),
        ({"tool_choice": "required"}, "tool_choice needs tools"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "news"}},
            },
            "'news'",
        ),
    ],
)
def test_fields_that_do_not_go_together(fields: Body, reason: str) -> None:
    with pytest.raises(HttpResponseError, match=reason):
        parse_request(body(**fields))


def test_nulls_are_as_if_absent() -> None:
    nulls = dict.fromkeys(ChatRequest.model_fields.keys() - {"messages"})
    assert parse_request({"messages": [USER], **nulls}) == parse_request({"messages": [USER]})


def test_extra_parameters() -> None:
    extra = body(logprobs=True)
    assert parse_request(extra, "pass-through").logprobs
    assert not parse_request(extra, "drop").logprobs
    with pytest.raises(HttpResponseError, match="logprobs") as raised:
        parse_request(extra, "error")
    assert raised.value.status_code == 422
    assert raised.value.body["detail"] == [{"loc": ["body", "logprobs"], "input": True}]
    for kind in ("pass-through", "error"):
        with pytest.raises(HttpResponseError, match="top_q"):
            parse_request(body(top_q=1), kind)
    assert parse_request(body(top_q=1), "drop") == parse_request(body())


def test_every_field_of_the_specification_is_known() -> None:
    assert ChatRequest.model_fields.keys() > AZURE_FIELDS


def test_unknown_fields_are_named_in_few_words() -> None:
    with pytest.raises(HttpResponseError, match="and 995 more") as raised:
        parse_request(body(**{f"field{index}": 1 for index in range(1000)}))
    assert raised.value.status_code == 422
    with pytest.raises(HttpResponseError) as raised:
        parse_request(body(**{"x" * 10_000: 1}))
    assert len(raised.value.error.message) < 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", [USER] * 4097),
        ("messages", [{"role": "user", "content": "half \ud800"}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": ""}] * 1025}]),
        ("tools", [WEATHER] * 129),
        ("stop", ["x"] * 17),
        ("stop", "x" * 1025),
        ("stop", ["x" * 1025]),
        ("tools", [{**WEATHER, "extra": float("inf")}]),
        ("max_tokens", 10**30),
        ("response_format", json.loads("[" * 101 + "]" * 101)),
        ("tools", json.loads('{"a":' * 500 + "0" + "}" * 500)),
        ("unknown", 1e999),
        ("messages", [{"role": "nobody", "content": ""}] * 4096),
        ("logit_bias", {"five" * 10_000: 1}),
        ("x" * 10_000, float("nan")),
        ("tool_choice", {"type": "function", "function": {"name": "f" * 10_000}}),
    ],
)
def test_what_is_too_much_is_named(service: ChatService, field: str, value: object) -> None:
    """In few words, however much there is of it."""
    with pytest.raises(HttpResponseError) as raised:
        complete(service, **{field: value})
    assert raised.value.status_code == 400
    assert field[:100] in raised.value.error.message
    assert len(raised.value.error.message) < 1000
    assert len(raised.value.param or "") < 200
