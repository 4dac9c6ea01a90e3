"""The OpenAPI document, and a server that does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from phi_edge.api.http import Request
from phi_edge.api.routes import ROUTES, Route, Routes
from phi_edge.api.service import ChatService
from phi_edge.server.app import SERVER_ROUTES

from .helpers.serving import serving

OPERATIONS = [
    *("GET /info", "POST /chat/completions", "POST /v1/chat/completions", "GET /v1/models"),
    *("GET /v1/models/{model}", "GET /metrics", "GET /health"),
]
PATHS = [
    *("/info", "/info/", "/models/info", "/chat/completions", "/models/chat/completions/"),
    *("/v1/chat/completions", "/v1/models", "/models/v1/models/", "/v1/models/other"),
    *("/", "/models", "/nowhere", "/v1/info"),
]


@pytest.fixture(scope="module")
def server(service: ChatService) -> Iterator[httpx.Client]:
    with serving(service) as client:
        yield client


@pytest.fixture(scope="module")
def operations(server: httpx.Client) -> dict[str, Any]:
    schema: Any = schemathesis.openapi.from_url(f"{server.base_url}/openapi.json")
    found = [operation.ok() for operation in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_all_operations_are_here(operations: dict[str, Any]) -> None:
    assert list(operations) == OPERATIONS


@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_are_as_documented(operations: dict[str, Any], label: str) -> None:
    """Of generated requests."""
    call_with_generated(operations[label], GenerationMode.POSITIVE)


@pytest.mark.parametrize("label", [label for label in OPERATIONS if label.startswith("POST")])
def test_bad_requests_get_errors_as_documented(operations: dict[str, Any], label: str) -> None:
    call_with_generated(operations[label], GenerationMode.NEGATIVE)


def call_with_generated(operation: Any, mode: str) -> None:
    """Send requests that keep to the document, or that do not.

    Some that keep to it are refused: a schema cannot say that a conversation ends with the user.
    """

    @settings(suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(mode))
    def check(case: schemathesis.Case[Any]) -> None:
        excluded: list[Any] = [positive_data_acceptance]
        if isinstance(case.body, dict):
            original = dict(case.body)
            for field in ("max_tokens", "n"):  # so that no answer is long
                asked = case.body.get(field)
                if asked is None or type(asked) is int:
                    case.body[field] = min(asked or 1, 1)
            case.body.pop("max_completion_tokens", None)
            if case.body != original:  # what was bad may be good now
                excluded.append(negative_data_rejection)
        case.call_and_validate(excluded_checks=excluded)

    check()


def test_the_table_is_what_the_server_documents() -> None:
    routes: list[Route[Any]] = [*ROUTES, *SERVER_ROUTES]
    table = [f"{route.method} {route.path}" for route in routes]
    table.remove("GET /openapi.json")  # the document itself, which schemathesis leaves out
    assert table == OPERATIONS


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_request_has_the_same_answer_in_process_and_on_the_server(
    server: httpx.Client, service: ChatService, method: str, path: str
) -> None:
    in_process = Routes(service).respond(Request(method, path, {}))
    answer = server.request(method, path)
    assert answer.status_code == in_process.status
    if answer.status_code != 404:  # the server names its own paths, too
        assert answer.content == in_process.body
    assert answer.headers.get("allow") == in_process.headers.get("allow")
