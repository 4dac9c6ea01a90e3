"""Transports for azure-core, and so for `azure.ai.inference`.

    azure.ai.inference.ChatCompletionsClient(
        endpoint="https://local",
        credential=AzureKeyCredential("none"),
        transport=LocalTransport(service),
    )

Needs azure-core, which comes with `azure-ai-inference`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.transport import AsyncHttpTransport, HttpTransport
from azure.core.rest import AsyncHttpResponse, HttpRequest, HttpResponse
from azure.core.utils import CaseInsensitiveDict
from typing_extensions import Self

from phi_edge.api.http import Reply, Request
from phi_edge.api.routes import Routes
from phi_edge.api.service import ChatService
from phi_edge.api.threads import AsyncStream, call
from phi_edge.cancel import CancelToken, close


class LocalTransport(HttpTransport[HttpRequest, HttpResponse]):
    """Answers requests of a synchronous client."""

    def __init__(self, service: ChatService) -> None:
        self._routes = Routes(service)

    def open(self) -> None:
        """Do nothing: there is nothing to open."""

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def __exit__(self, *args: object) -> None:
        """Do nothing: there is nothing to close."""

    def send(self, request: HttpRequest, **options: Any) -> HttpResponse:
        """Answer a request; with `stream=True` the body is made as it is read."""
        cancel = CancelToken()
        response = _LocalResponse(request, self._routes.respond(_read(request), cancel), cancel)
        if not options.get("stream"):
            response.read()
        return response


class AsyncLocalTransport(AsyncHttpTransport[HttpRequest, AsyncHttpResponse]):
    """Answers requests of an asynchronous client."""

    def __init__(self, service: ChatService) -> None:
        self._routes = Routes(service)

    async def open(self) -> None:
        """Do nothing: there is nothing to open."""

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""

    async def __aexit__(self, *args: object) -> None:
        """Do nothing: there is nothing to close."""

    async def send(self, request: HttpRequest, **options: Any) -> AsyncHttpResponse:
        """Answer a request in a thread; with `stream=True` the body is made as it is read."""
        cancel = CancelToken()
        reply = await call(lambda: self._routes.respond(_read(request), cancel), cancel)
        response = _AsyncLocalResponse(request, reply, cancel)
        if not options.get("stream"):
            await response.read()
        return response


def _read(request: HttpRequest) -> Request:
    headers = {name.lower(): value for name, value in request.headers.items()}
    content = request.content
    body = content.encode() if isinstance(content, str) else content or b""
    return Request(request.method, urlsplit(request.url).path, headers, body)


class _Answer:
    """What azure-core wants to know of a response, whether it is awaited or not."""

    # Attributes, in the place of the abstract properties of azure-core's classes.
    request: Any = None
    status_code: int = 0
    headers: MutableMapping[str, str] = CaseInsensitiveDict()
    reason: str = ""
    content_type: str | None = None
    encoding: str | None = "utf-8"
    url: str = ""
    is_closed: bool = False

    def __init__(self, request: HttpRequest, reply: Reply, cancel: threading.Event) -> None:
        self.request, self.url = request, request.url
        self.status_code, self.reason = reply.status, HTTPStatus(reply.status).phrase
        self.headers = CaseInsensitiveDict(reply.headers)
        self.content_type = reply.headers.get("content-type")
        self._body = reply.body
        self._cancel = cancel
        self._content = reply.body if isinstance(reply.body, bytes) else None

    @property
    def is_stream_consumed(self) -> bool:
        return self._content is not None

    @property
    def content(self) -> bytes:
        if self._content is None:
            raise ValueError("the stream has not been read")
        return self._content

    def text(self, encoding: str | None = None) -> str:
        return self.content.decode(encoding or "utf-8")

    def body(self) -> bytes:
        return self.content

    def json(self) -> Any:
        return json.loads(self.content)

    def raise_for_status(self) -> None:
        if self.status_code >= HTTPStatus.BAD_REQUEST:
            raise HttpResponseError(response=self)

    def _chunks(self) -> Iterator[bytes]:
        body = self._body if self._content is None else self._content
        return iter([body]) if isinstance(body, bytes) else body


class _LocalResponse(_Answer, HttpResponse):
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def read(self) -> bytes:
        if self._content is None:
            self._content = b"".join(self._chunks())
        return self._content

    def iter_raw(self, **_options: Any) -> Iterator[bytes]:
        return self._chunks()

    iter_bytes = iter_raw

    def close(self) -> None:
        self.is_closed = True
        close(self._chunks(), self._cancel)


class _AsyncLocalResponse(_Answer, AsyncHttpResponse):
    def __init__(self, request: HttpRequest, reply: Reply, cancel: threading.Event) -> None:
        super().__init__(request, reply, cancel)
        self._stream = AsyncStream(self._chunks(), cancel)

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    async def read(self) -> bytes:
        if self._content is None:
            self._content = b"".join([chunk async for chunk in self._stream])
        return self._content

    def iter_raw(self, **_options: Any) -> AsyncIterator[bytes]:
        return self._stream if self._content is None else AsyncStream(self._chunks(), self._cancel)

    iter_bytes = iter_raw

    async def close(self) -> None:
        self.is_closed = True
        await self._stream.aclose()
