"""Requests and replies of HTTP, as plain values: no socket is needed to answer one."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from phi_edge.errors import GenerationCancelled, HttpResponseError, PhiEdgeError

logger = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"
# What a request may be called by its sender: nothing that could end a header and begin another.
_REQUEST_ID = re.compile(r"[ -~]{1,256}")


@dataclasses.dataclass(frozen=True)
class Request:
    """An HTTP request.

    Attributes:
        path: Without the query.
        headers: Names in lower case.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclasses.dataclass(frozen=True)
class Reply:
    """An HTTP response; a streamed body is an iterator, and closing it ends the work."""

    status: int
    headers: Mapping[str, str]
    body: bytes | Iterator[bytes]


def returned_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Give the headers of a request that its reply repeats: Azure's clients may ask for their id.

    Args:
        headers: Those of the request, with names in lower case.
    """
    request_id = headers.get("x-ms-client-request-id", "")
    is_wanted = headers.get("x-ms-return-client-request-id", "").lower() == "true"
    if not is_wanted or not _REQUEST_ID.fullmatch(request_id):
        return {}
    return {"x-ms-client-request-id": request_id}


def json_reply(
    body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Reply:
    """Make a reply of JSON."""
    headers = {"content-type": "application/json", **(headers or {})}
    return Reply(status, headers, json.dumps(body).encode())


def event_reply(events: Iterator[Mapping[str, Any]]) -> Reply:
    """Make a reply that streams JSON as server-sent events; an error ends it as an event."""
    headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
    return Reply(200, headers, _server_sent(events))


def _server_sent(events: Iterator[Mapping[str, Any]]) -> Iterator[bytes]:
    try:
        for event in events:
            yield f"data: {json.dumps(event)}\n\n".encode()
    except (PhiEdgeError, MemoryError) as error:
        yield error_event(error)
    else:
        yield _DONE


def error_reply(error: PhiEdgeError | MemoryError) -> Reply:
    """Make the reply that tells of an error."""
    error = _to_http(error)
    return json_reply(error.body, error.status_code, error.headers)


def error_event(error: PhiEdgeError | MemoryError) -> bytes:
    """Make the end of a stream that an error stops.

    The status is sent already; clients look for an `error` in the stream.
    """
    return f"data: {json.dumps(_to_http(error).body)}\n\n".encode() + _DONE


def _to_http(error: PhiEdgeError | MemoryError) -> HttpResponseError:
    if isinstance(error, HttpResponseError):
        return error
    if isinstance(error, GenerationCancelled):
        return HttpResponseError(500, str(error), code="cancelled")  # nobody waits for it
    # An engine's own words may have paths and addresses in them.
    logger.error("a request failed: %s: %s", type(error).__name__, error)
    if isinstance(error, MemoryError):
        return HttpResponseError(
            503,
            "there is not enough memory for this request: use fewer images, a lower `detail`, a "
            "shorter prompt or a lower max_tokens",
            code="out_of_memory",
        )
    return HttpResponseError(500, "the model failed to answer; the log says why")


def read_json(body: bytes) -> object:
    """Read the body of a request.

    Raises:
        HttpResponseError: 400; it is not JSON.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise HttpResponseError(
            400, "the request body is not JSON: it is nested too deep"
        ) from None
    except ValueError as error:
        raise HttpResponseError(400, f"the request body is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads, and which are not in JSON."""
    raise ValueError(f"{name} is no number in it")
