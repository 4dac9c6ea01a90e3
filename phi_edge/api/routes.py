"""The API's HTTP shape without HTTP: a method, a path, headers and bytes in, a reply out.

Two families of routes differ in small things. Those of the Azure AI model inference API treat
extra parameters as their header says and end a stream with usage; OpenAI's, below `/v1`, take all
fields, and send usage as a chunk of its own when `stream_options` ask for it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from phi_edge.errors import GenerationCancelled, HttpResponseError, PhiEdgeError

from .request import ChatRequest, ExtraParameters, parse_request
from .response import Chunk
from .service import ChatService

logger = logging.getLogger(__name__)

JSON_TYPE = "application/json"
STREAM_TYPE = "text/event-stream"
EXTRA_PARAMETERS_HEADER = "extra-parameters"
# Articles about the Azure SDK for JavaScript call it so.
_EXTRA_PARAMETERS_SHORT = "extra-params"
# Azure clients are also given endpoints that end so.
_AZURE_PREFIX = "/models"
_DONE = b"data: [DONE]\n\n"


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


class Routes:
    """Answers requests with a service."""

    def __init__(self, service: ChatService) -> None:
        self.service = service

    def respond(self, request: Request, cancel: threading.Event | None = None) -> Reply:
        """Answer a request; every error is a reply too.

        Args:
            request: What to answer.
            cancel: Setting it, from another thread, stops the work.
        """
        try:
            return self._route(request)(request, cancel)
        except (PhiEdgeError, MemoryError) as error:
            return error_reply(error)

    def _route(self, request: Request) -> Callable[[Request, threading.Event | None], Reply]:
        path = request.path.rstrip("/")
        routes = {
            "/info": ("GET", self._info),
            "/chat/completions": ("POST", self._azure_chat),
            "/v1/chat/completions": ("POST", self._openai_chat),
            "/v1/models": ("GET", self._models),
            f"/v1/models/{self.service.model_name}": ("GET", self._model),
        }
        found = routes.get(path) or routes.get(path.removeprefix(_AZURE_PREFIX))
        if found is None:
            raise HttpResponseError(404, f"there is no {request.path} here: {', '.join(routes)}")
        method, respond = found
        if request.method != method:
            raise HttpResponseError(
                405, f"{request.path} takes {method}", headers={"allow": method}
            )
        return respond

    def _info(self, _request: Request, _cancel: threading.Event | None) -> Reply:
        return _json_reply(self.service.info())

    def _model(self, _request: Request, _cancel: threading.Event | None) -> Reply:
        return _json_reply(self._describe_model())

    def _models(self, _request: Request, _cancel: threading.Event | None) -> Reply:
        return _json_reply({"object": "list", "data": [self._describe_model()]})

    def _describe_model(self) -> dict[str, Any]:
        info = self.service.info()
        return {
            "id": info["model_name"],
            "object": "model",
            "created": 0,
            "owned_by": info["model_provider_name"],
        }

    def _azure_chat(self, request: Request, cancel: threading.Event | None) -> Reply:
        short = request.headers.get(_EXTRA_PARAMETERS_SHORT, "error")
        extra = request.headers.get(EXTRA_PARAMETERS_HEADER, short).lower()
        if extra not in get_args(ExtraParameters):
            raise HttpResponseError(
                400,
                f"the header {EXTRA_PARAMETERS_HEADER} is one of "
                f"{', '.join(get_args(ExtraParameters))}, not {extra!r}",
                param=EXTRA_PARAMETERS_HEADER,
            )
        parsed = parse_request(_read_json(request.body), extra)  # type: ignore[arg-type]
        return self._chat(parsed, cancel, lambda chunks: chunks)

    def _openai_chat(self, request: Request, cancel: threading.Event | None) -> Reply:
        parsed = parse_request(_read_json(request.body))
        options = parsed.stream_options
        with_usage = options is not None and options.include_usage
        return self._chat(parsed, cancel, lambda chunks: _openai_usage(chunks, with_usage))

    def _chat(
        self,
        request: ChatRequest,
        cancel: threading.Event | None,
        shape: Callable[[Iterator[Chunk]], Iterator[Chunk]],
    ) -> Reply:
        if not request.stream:
            return _json_reply(self.service.complete(request, cancel))
        chunks = shape(self.service.stream(request, cancel))
        headers = {"content-type": STREAM_TYPE, "cache-control": "no-cache"}
        return Reply(200, headers, _server_sent_events(chunks))


def error_reply(error: PhiEdgeError | MemoryError) -> Reply:
    """The reply that tells of an error."""
    error = _to_http(error)
    headers = {"content-type": JSON_TYPE, **error.headers}
    return Reply(error.status_code, headers, json.dumps(error.body).encode())


def error_event(error: PhiEdgeError | MemoryError) -> bytes:
    """What ends a stream that an error stops.

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


def _json_reply(body: Mapping[str, Any]) -> Reply:
    return Reply(200, {"content-type": JSON_TYPE}, json.dumps(body).encode())


def _read_json(body: bytes) -> object:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise HttpResponseError(
            400, "the request body is not JSON: it is nested too deep"
        ) from None
    except ValueError as error:
        raise HttpResponseError(400, f"the request body is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    """Python reads these, and JSON has not got them."""
    raise ValueError(f"{name} is no number in it")


def _openai_usage(chunks: Iterator[Chunk], with_usage: bool) -> Iterator[Chunk]:  # noqa: FBT001
    for chunk in chunks:
        usage = chunk.pop("usage", None)
        if not with_usage:
            yield chunk
            continue
        yield {**chunk, "usage": None}
        if usage is not None:
            yield {**chunk, "choices": [], "usage": usage}


def _server_sent_events(chunks: Iterator[Chunk]) -> Iterator[bytes]:
    try:
        for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n".encode()
    except (PhiEdgeError, MemoryError) as error:
        yield error_event(error)
    else:
        yield _DONE
