"""Answers that follow a JSON schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from phi_edge import HttpResponseError
from phi_edge.api.service import ChatService
from phi_edge.generation.constraint import JsonConstraint, JsonGrammar

from .helpers.requests import (
    Body,
    complete,
    json_format,
    text,
)

SCHEMAS: list[Body] = [
    {"type": "object"},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {
        "type": "object",
        "properties": {
            "kind": {"enum": ["bar", "line"]},
            "values": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 9},
                "minItems": 1,
                "maxItems": 3,
            },
            "note": {"type": ["string", "null"], "maxLength": 5},
        },
        "required": ["kind", "values", "note"],
        "additionalProperties": False,
    },
    {"anyOf": [{"const": "yes"}, {"type": "boolean"}, {"type": "null"}]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
    {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node"}},
        "required": ["tree"],
        "additionalProperties": False,
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                "required": ["children"],
                "additionalProperties": False,
            }
        },
    },
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {
        "type": "object",
        "patternProperties": {f"^{name}[0-9]$": {"type": "integer"} for name in "abc"},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    {"type": "integer", "multipleOf": 2500, "minimum": 0, "maximum": 10**9},
]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("seed", range(4))
def test_json_schema(service: ChatService, schema: Body, seed: int) -> None:
    """A model with random weights knows nothing of JSON, and writes it all the same."""
    wanted = json_format(schema)
    answer = complete(service, response_format=wanted, temperature=1, seed=seed, max_tokens=150)
    if answer["choices"][0]["finish_reason"] == "stop":
        jsonschema.validate(json.loads(text(answer)), schema)
    else:
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 150


def test_most_completions_of_a_bounded_schema_come_to_an_end(service: ChatService) -> None:
    wanted = json_format(SCHEMAS[2])
    for seed in range(5):
        answer = complete(service, response_format=wanted, temperature=1, seed=seed, max_tokens=200)
        assert answer["choices"][0]["finish_reason"] == "stop"


def test_json_object(service: ChatService) -> None:
    answer = complete(service, response_format={"type": "json_object"}, max_tokens=100)
    assert isinstance(json.loads(text(answer)), dict)


@pytest.mark.parametrize("schema", [{"type": "foo"}, {"type": "string", "pattern": "("}])
def test_a_schema_that_cannot_be_used(service: ChatService, schema: Body) -> None:
    wanted = json_format(schema)
    with pytest.raises(HttpResponseError, match="schema cannot be used") as raised:
        complete(service, response_format=wanted)
    assert raised.value.param == "response_format.json_schema.schema"
    assert "%json" not in raised.value.error.message


def test_a_schema_that_turns_out_to_be_too_much(service: ChatService) -> None:
    """It compiles; that there is too much in it is found as it is followed."""
    shapes = [{"type": "object", "properties": {f"x{at}": {}}} for at in range(800)]
    wanted = json_format({"anyOf": shapes})
    with pytest.raises(HttpResponseError, match="cannot be followed") as raised:
        complete(service, response_format=wanted)
    assert raised.value.status_code == 400
    assert raised.value.param == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"p{index}": {"type": "string"} for index in range(10_000)}},
        # Takes llguidance minutes, after which it panics.
        {"type": "string", "allOf": [{"pattern": f"a.*{index}"} for index in range(200)]},
        {"patternProperties": {f"^a{index}$": {"type": "string"} for index in range(1000)}},
        {"type": "integer", "multipleOf": 999_999},
        {"type": "number", "multipleOf": 99999.9},
        {"allOf": [{"type": "integer", "multipleOf": divisor} for divisor in (997, 991)]},
        {"prefixItems": [{"type": "integer", "multipleOf": divisor} for divisor in [9_000] * 1500]},
        {"$ref": "http://127.0.0.1:9/x.json"},
        {"$ref": "file:///etc/passwd"},
    ],
)
def test_a_schema_that_would_take_too_long(service: ChatService, schema: Body) -> None:
    wanted = json_format(schema)
    with pytest.raises(HttpResponseError, match="schema cannot be used") as raised:
        complete(service, response_format=wanted)
    assert raised.value.param == "response_format.json_schema.schema"


def test_a_schema_is_compiled_once_for_all_choices(
    service: ChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    constrained: list[object] = []
    constrain = JsonGrammar.constrain

    def count(grammar: JsonGrammar, schema: dict[str, Any]) -> JsonConstraint:
        constrained.append(schema)
        return constrain(grammar, schema)

    monkeypatch.setattr(JsonGrammar, "constrain", count)
    answer = complete(service, response_format={"type": "json_object"}, n=3, max_tokens=100)
    assert len(constrained) == 1
    assert all(isinstance(json.loads(text(answer, index)), dict) for index in range(3))
