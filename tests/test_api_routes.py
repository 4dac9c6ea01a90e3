"""The HTTP shape of the chat completions core."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from phi_edge.api.http import Request
from phi_edge.api.routes import Routes
from phi_edge.api.service import ChatService

from .helpers.requests import (
    body,
)

Post = Callable[..., tuple[int, list[Any]]]


@pytest.fixture(scope="module")
def post(service: ChatService) -> Callable[..., tuple[int, list[Any]]]:
    routes = Routes(service)

    def post(path: str, content: object, **headers: str) -> tuple[int, list[Any]]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = routes.respond(Request("POST", path, names, json.dumps(content).encode()))
        if isinstance(reply.body, bytes):
            return reply.status, [json.loads(reply.body)]
        events = b"".join(reply.body).decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return reply.status, [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    return post


def test_routes_of_both_families(post: Post) -> None:
    for path in ("/chat/completions", "/models/chat/completions", "/v1/chat/completions"):
        status, (answer,) = post(path, body())
        assert status == 200
        assert answer["object"] == "chat.completion"
    status, (answer,) = post("/chat/completion", body())
    assert (status, answer["error"]["code"]) == (404, "not_found")


def test_extra_parameters_header(post: Post) -> None:
    extra = body(logprobs=True)
    assert post("/chat/completions", extra)[0] == 422
    _, (answer,) = post("/chat/completions", extra, extra_parameters="pass-through")
    assert answer["choices"][0]["logprobs"]
    _, (answer,) = post("/chat/completions", extra, extra_parameters="drop")
    assert answer["choices"][0]["logprobs"] is None
    status, (answer,) = post("/chat/completions", extra, extra_parameters="maybe")
    assert (status, answer["error"]["param"]) == (400, "extra-parameters")
    assert post("/v1/chat/completions", extra)[0] == 200


def test_usage_in_streams(post: Post) -> None:
    _, azure = post("/chat/completions", body(stream=True))
    assert azure[-1]["usage"]["completion_tokens"] == 6
    assert azure[-1]["choices"]
    _, openai = post("/v1/chat/completions", body(stream=True))
    assert not any("usage" in chunk for chunk in openai)
    _, openai = post(
        "/v1/chat/completions", body(stream=True, stream_options={"include_usage": True})
    )
    assert openai[-1]["choices"] == []
    assert openai[-1]["usage"]["completion_tokens"] == 6
    assert [chunk["usage"] for chunk in openai[:-1]] == [None] * (len(openai) - 1)


def test_a_body_that_is_not_json(service: ChatService) -> None:
    for content in (b"", b"{", b"[" * 100_000, b"\xff"):
        reply = Routes(service).respond(Request("POST", "/v1/chat/completions", {}, content))
        assert reply.status == 400
        assert isinstance(reply.body, bytes)
        assert "not JSON" in json.loads(reply.body)["error"]["message"]


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_json_has_not_got(service: ChatService, constant: str) -> None:
    content = f'{{"messages": [], "temperature": {constant}}}'.encode()
    reply = Routes(service).respond(Request("POST", "/v1/chat/completions", {}, content))
    assert reply.status == 400
    assert isinstance(reply.body, bytes)
    assert constant in json.loads(reply.body)["error"]["message"]
