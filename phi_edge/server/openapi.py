"""The OpenAPI document, made of the table of routes, and of the types that check requests and
build answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter

from phi_edge.api.routes import Route

_REF = "#/components/schemas/{model}"
# Before OpenAPI 3.2, the schema of a stream is that of an event in it. The last is no JSON.
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}


def make_document(version: str, routes: Sequence[Route[Any]], *, needs_key: bool) -> dict[str, Any]:
    """Make the document of a server with these routes, which asks for a key or does not."""
    paths: dict[str, Any] = {}
    for route in routes:
        operation = _describe(route)
        if needs_key and not route.needs_key:
            operation["security"] = []
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "phi_edge", "version": version},
        "paths": paths,
        "components": {"schemas": _schemas(routes)},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "api-key"},
        }
        document["security"] = [{"bearer": []}, {"key": []}]
    return document


def _describe(route: Route[Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    errors = [401, 403] if route.needs_key else [403]
    if route.reply is not None:
        content = _json(route.reply)
    if route.event is not None:
        content["text/event-stream"] = {"schema": _EVENT}
    if route.runs_model:
        errors += [400, 408, 413, 422, 429, 503]
    if "{" in route.path:
        errors += [404]
    error = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    operation: dict[str, Any] = {
        "responses": {
            "200": {"description": "ok", "content": content},
            **{str(status): {"description": "error", "content": error} for status in errors},
        }
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(route.body)}
    if parameters := list(_parameters(route)):
        operation["parameters"] = parameters
    return operation


def _parameters(route: Route[Any]) -> Iterator[dict[str, Any]]:
    if "{model}" in route.path:
        schema = {"type": "string"}
        yield {"name": "model", "in": "path", "required": True, "schema": schema}
    for place, parameters in {"header": route.headers, "query": route.query}.items():
        for name, kind in parameters.items():
            yield {"name": name, "in": place, "schema": TypeAdapter(kind).json_schema()}


def _is_named(kind: Any) -> bool:
    """Tell whether a type has a schema of its own name; `dict[str, str]` has none."""
    return hasattr(kind, "__annotations__")


def _json(kind: Any) -> dict[str, Any]:
    schema = (
        {"$ref": _REF.format(model=kind.__name__)}
        if _is_named(kind)
        else TypeAdapter(kind).json_schema()
    )
    return {"application/json": {"schema": schema}}


def _schemas(routes: Sequence[Route[Any]]) -> dict[str, Any]:
    kinds: list[Any] = [kind for route in routes for kind in (route.body, route.reply, route.event)]
    schemas: dict[str, Any] = {}
    for kind in filter(_is_named, kinds):
        schema = TypeAdapter(kind).json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
    nullable = {"type": ["string", "null"]}
    error = {"message": {"type": "string"}, "type": nullable, "param": nullable}
    error |= {"code": {"type": "string"}, "status": {"type": "integer"}}
    schemas["Error"] = {
        "type": "object",
        "properties": {"error": {"type": "object", "properties": error}},
        "required": ["error"],
    }
    return schemas
