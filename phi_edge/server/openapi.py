"""The OpenAPI document, made of the same types that check requests and build answers."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from phi_edge.api.request import ChatRequest, ExtraParameters
from phi_edge.api.response import Chunk, Completion, ModelDescription

_REF = "#/components/schemas/{model}"
# Before OpenAPI 3.2, the schema of a stream is that of an event in it. The last is no JSON.
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_TYPES = {
    "ChatRequest": ChatRequest,
    "Completion": Completion,
    "Chunk": Chunk,
    "ModelDescription": ModelDescription,
}


def make_document(version: str, *, needs_key: bool) -> dict[str, Any]:
    """The document of a server.

    Args:
        version: This package's.
        needs_key: A key is asked for.
    """
    chat = {
        "requestBody": {"required": True, "content": _json("ChatRequest")},
        "responses": _responses(
            {**_json("Completion"), "text/event-stream": {"schema": _EVENT}},
            400, 408, 413, 422, 429, 503,
        ),
    }  # fmt: skip
    extra_parameters = {
        "name": "extra-parameters",
        "in": "header",
        "description": "What becomes of fields that the Azure AI model inference API has not.",
        "schema": TypeAdapter(ExtraParameters).json_schema(),
    }
    api_version = {"name": "api-version", "in": "query", "schema": {"type": "string"}}
    listed = {"application/json": {"schema": {"type": "object"}}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    paths: dict[str, Any] = {
        "/info": {"get": {"responses": _responses(_json("ModelDescription"))}},
        "/chat/completions": {"post": {**chat, "parameters": [extra_parameters, api_version]}},
        "/v1/chat/completions": {"post": chat},
        "/v1/models": {"get": {"responses": _responses(listed)}},
        "/metrics": {"get": {"responses": _responses(text)}},
        "/health": {"get": {"responses": {"200": {"description": "ok", "content": listed}}}},
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "phi_edge", "version": version},
        "paths": paths,
        "components": {"schemas": _schemas()},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "api-key"},
        }
        document["security"] = [{"bearer": []}, {"key": []}]
        paths["/health"]["get"]["security"] = []
    return document


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=name)}}}


def _responses(content: dict[str, Any], *errors: int) -> dict[str, Any]:
    found: dict[str, Any] = {"200": {"description": "ok", "content": content}}
    for status in (401, 403, *errors):
        found[str(status)] = {"description": "error", "content": _json("Error")}
    return found


def _schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for name, kind in _TYPES.items():
        schema = TypeAdapter(kind).json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        schemas[name] = schema
    nullable = {"type": ["string", "null"]}
    error = {"message": {"type": "string"}, "type": nullable, "param": nullable}
    error |= {"code": {"type": "string"}, "status": {"type": "integer"}}
    schemas["Error"] = {
        "type": "object",
        "properties": {"error": {"type": "object", "properties": error}},
        "required": ["error"],
    }
    return schemas
