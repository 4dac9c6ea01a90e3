"""The endpoints: one table for requests in process, for the server and for its OpenAPI document.

Two families of routes differ in small things. Those of the Azure AI model inference API treat
extra parameters as their header says and end a stream with usage; OpenAI's, below `/v1`, take all
fields, and send usage as a chunk of its own when `stream_options` ask for it.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field

from phi_edge.errors import HttpResponseError, PhiEdgeError

from .http import (
    Reply,
    Request,
    error_reply,
    event_reply,
    json_reply,
    read_json,
    returned_headers,
)
from .parse import (
    EXTRA_PARAMETERS_HEADER,
    ExtraParameters,
    parse_request,
    read_extra_parameters,
)
from .request import ChatRequest
from .response import Chunk, Completion, ModelCard, ModelDescription, ModelList, Usage
from .service import ChatService

# Azure clients are also given endpoints that end so.
_AZURE_PREFIX = "/models"

Owner = TypeVar("Owner")


@dataclasses.dataclass(frozen=True)
class Route(Generic[Owner]):
    """An endpoint.

    Attributes:
        method: HTTP method.
        path: `{model}` stands for a model's name.
        respond: What answers; its first argument is what has the route.
        runs_model: The answer may take long, and wants the whole machine.
        needs_key: A server that has a key asks for it here.
        body: Type of the request's body, as JSON; None where there is none.
        reply: Type of the answer, as JSON; None for plain text.
        event: Type of an event, where the answer can be streamed.
        headers: Headers that change the answer, and their types.
        query: Parameters of the query that are accepted, and their types.
    """

    method: str
    path: str
    respond: Callable[[Owner, Request, threading.Event | None], Reply]
    runs_model: bool = False
    needs_key: bool = True
    body: type | None = None
    reply: Any = None
    event: type | None = None
    headers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    query: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.path).replace(r"\{model\}", "(.+)"), re.DOTALL)

    def matches(self, path: str) -> bool:
        """Tell whether a request's path is this one."""
        path = path.rstrip("/")
        paths = (path, path.removeprefix(_AZURE_PREFIX))
        return any(self._pattern.fullmatch(each) for each in paths)

    def answer(self, owner: Owner, request: Request, cancel: threading.Event | None) -> Reply:
        """Answer a request that matches; every error is a reply too."""
        try:
            return self.respond(owner, request, cancel)
        except (PhiEdgeError, MemoryError) as error:
            return error_reply(error)


def find_route(routes: Sequence[Route[Any]], request: Request) -> Route[Any]:
    """Find what answers a request.

    Raises:
        HttpResponseError: 404 or 405.
    """
    found = [route for route in routes if route.matches(request.path)]
    if not found:
        known = ", ".join(dict.fromkeys(route.path for route in routes))
        raise HttpResponseError(404, f"there is no {request.path} here: {known}")
    for route in found:
        if route.method == request.method:
            return route
    allowed = ", ".join(route.method for route in found)
    raise HttpResponseError(405, f"{request.path} takes {allowed}", headers={"allow": allowed})


class Routes:
    """Answers requests with a service."""

    def __init__(
        self, service: ChatService, on_usage: Callable[[Usage], None] = lambda _usage: None
    ) -> None:
        """Take a service.

        Args:
            service: What answers.
            on_usage: Called with the usage of each answer, when it is complete.
        """
        self._service = service
        self._on_usage = on_usage

    def respond(self, request: Request, cancel: threading.Event | None = None) -> Reply:
        """Answer a request; every error is a reply too.

        Args:
            request: What to answer.
            cancel: Setting it, from another thread, stops the work.
        """
        try:
            reply = find_route(ROUTES, request).answer(self, request, cancel)
        except HttpResponseError as error:
            reply = error_reply(error)
        headers = {**reply.headers, **returned_headers(request.headers)}
        return dataclasses.replace(reply, headers=headers)

    def info(self, _request: Request, _cancel: threading.Event | None) -> Reply:
        """Tell what the model is, as Azure's API does."""
        return json_reply(self._service.info())

    def models(self, _request: Request, _cancel: threading.Event | None) -> Reply:
        """List the one model, as OpenAI's API does."""
        return json_reply({"object": "list", "data": [self._card()]})

    def model(self, request: Request, _cancel: threading.Event | None) -> Reply:
        """Tell what the model is, as OpenAI's API does."""
        card = self._card()
        name = request.path.rstrip("/").partition("/v1/models/")[2]
        if name != card["id"]:
            raise HttpResponseError(
                404,
                f"there is no model {name} here: it is {card['id']}",
                code="model_not_found",
                param="model",
            )
        return json_reply(card)

    def _card(self) -> ModelCard:
        info = self._service.info()
        return {
            "id": info["model_name"],
            "object": "model",
            "created": 0,
            "owned_by": info["model_provider_name"],
        }

    def azure_chat(self, request: Request, cancel: threading.Event | None) -> Reply:
        """Answer a conversation as Azure's API does."""
        extra = read_extra_parameters(request.headers, "error")
        parsed = parse_request(read_json(request.body), extra)
        return self._chat(parsed, cancel, lambda chunks: chunks)

    def openai_chat(self, request: Request, cancel: threading.Event | None) -> Reply:
        """Answer a conversation as OpenAI's API does."""
        parsed = parse_request(read_json(request.body))
        options = parsed.stream_options
        with_usage = options is not None and options.include_usage
        return self._chat(parsed, cancel, lambda chunks: _openai_usage(chunks, with_usage))

    def _chat(
        self,
        request: ChatRequest,
        cancel: threading.Event | None,
        shape: Callable[[Iterator[Chunk]], Iterator[Chunk]],
    ) -> Reply:
        if request.stream:
            return event_reply(shape(self._noting_usage(self._service.stream(request, cancel))))
        completion = self._service.complete(request, cancel)
        self._on_usage(completion["usage"])
        return json_reply(completion)

    def _noting_usage(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            if usage := chunk.get("usage"):
                self._on_usage(usage)
            yield chunk


def _openai_usage(chunks: Iterator[Chunk], with_usage: bool) -> Iterator[Chunk]:  # noqa: FBT001
    for chunk in chunks:
        usage = chunk.pop("usage", None)
        if not with_usage:
            yield chunk
            continue
        yield {**chunk, "usage": None}
        if usage is not None:
            yield {**chunk, "choices": [], "usage": usage}


_ExtraParametersHeader = Annotated[
    ExtraParameters,
    Field(description="What becomes of fields that the Azure AI model inference API has not."),
]
ROUTES: tuple[Route[Routes], ...] = (
    Route("GET", "/info", Routes.info, reply=ModelDescription),
    Route(
        "POST",
        "/chat/completions",
        Routes.azure_chat,
        runs_model=True,
        body=ChatRequest,
        reply=Completion,
        event=Chunk,
        headers={EXTRA_PARAMETERS_HEADER: _ExtraParametersHeader},
        query={"api-version": str},
    ),
    Route(
        "POST",
        "/v1/chat/completions",
        Routes.openai_chat,
        runs_model=True,
        body=ChatRequest,
        reply=Completion,
        event=Chunk,
    ),
    Route("GET", "/v1/models", Routes.models, reply=ModelList),
    Route("GET", "/v1/models/{model}", Routes.model, reply=ModelCard),
)
