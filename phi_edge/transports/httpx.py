"""A transport for httpx, and so for `openai`.

    openai.OpenAI(
        base_url="http://local/v1",
        api_key="none",
        http_client=httpx.Client(transport=LocalTransport(service)),
    )

Needs httpx. It comes with `openai` up to version 2; version 3 takes its clients too, but brings
httpx2.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx

from phi_edge.api.http import Reply, Request
from phi_edge.api.routes import Routes
from phi_edge.api.service import ChatService
from phi_edge.api.threads import AsyncStream, call
from phi_edge.cancel import CancelToken, close


class LocalTransport(httpx.BaseTransport):
    """Answers requests of an `httpx.Client`."""

    def __init__(self, service: ChatService) -> None:
        self._routes = Routes(service)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request; a streamed body is made as it is read."""
        cancel = CancelToken()
        reply = self._routes.respond(_read(request, request.read()), cancel)
        body = reply.body
        stream = None if isinstance(body, bytes) else _Stream(body, cancel)
        return _respond(reply, request, stream)


class AsyncLocalTransport(httpx.AsyncBaseTransport):
    """Answers requests of an `httpx.AsyncClient`."""

    def __init__(self, service: ChatService) -> None:
        self._routes = Routes(service)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request in a thread; a streamed body is made as it is read."""
        cancel = CancelToken()
        content = await request.aread()
        reply = await call(lambda: self._routes.respond(_read(request, content), cancel), cancel)
        body = reply.body
        stream = None if isinstance(body, bytes) else _AsyncStream(body, cancel)
        return _respond(reply, request, stream)


class _Stream(httpx.SyncByteStream):
    def __init__(self, body: Iterator[bytes], cancel: threading.Event) -> None:
        self._body = body
        self._cancel = cancel

    def __iter__(self) -> Iterator[bytes]:
        return self._body

    def close(self) -> None:
        close(self._body, self._cancel)


class _AsyncStream(AsyncStream[bytes], httpx.AsyncByteStream):
    pass


def _read(request: httpx.Request, content: bytes) -> Request:
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Request(request.method, request.url.path, headers, content)


def _respond(
    reply: Reply, request: httpx.Request, stream: _Stream | _AsyncStream | None
) -> httpx.Response:
    content = reply.body if isinstance(reply.body, bytes) else None
    return httpx.Response(
        reply.status, headers=reply.headers, content=content, stream=stream, request=request
    )
