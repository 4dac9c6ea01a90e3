"""The application: routes, limits, and requests that are given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from phi_edge import __version__
from phi_edge.api.routes import Reply, Request, Routes
from phi_edge.api.service import ChatService
from phi_edge.errors import HttpResponseError

from .guard import Guard
from .metrics import Metrics
from .openapi import make_document
from .replies import to_response
from .worker import Job, Worker

MAX_BODY_BYTES = 32 * 2**20
MAX_WAITING = 8
# From the head of a request to the end of its body.
MAX_BODY_SECONDS = 60.0
# Clients give up after ten minutes, by default; this ends what an open connection holds.
TIMEOUT_SECONDS = 3600.0
_CHAT_PATHS = ("/chat/completions", "/models/chat/completions", "/v1/chat/completions")
_INFO_PATHS = ("/info", "/models/info", "/v1/models", "/v1/models/{name:path}")
# The status that web servers log for a client that went away.
_CLIENT_CLOSED_REQUEST = 499


def make_app(
    service: ChatService,
    *,
    api_key: str | None = None,
    is_local: bool = True,
    max_waiting: int = MAX_WAITING,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_body_seconds: float = MAX_BODY_SECONDS,
    timeout: float = TIMEOUT_SECONDS,
) -> Starlette:
    """Build the application.

    Args:
        service: What answers.
        api_key: Clients have to send it, when there is one.
        is_local: The server is reached by this machine alone.
        max_waiting: Requests that may wait; more get status 429.
        max_body_bytes: Larger requests get status 413.
        max_body_seconds: Requests that take longer to arrive get status 408.
        timeout: Seconds after which a request that is not answered, or a stream that is not at
            its end, ends with an error; the time that it waits counts.
    """
    server = _Server(service, Worker(max_waiting, timeout), max_body_bytes, max_body_seconds)
    document = make_document(__version__, needs_key=api_key is not None)

    async def openapi(_request: HttpRequest) -> Response:
        return JSONResponse(document)

    async def health(_request: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.worker.close)

    routes = [
        *(Route(path, server.chat, methods=["POST"]) for path in _CHAT_PATHS),
        *(Route(path, server.info, methods=["GET"]) for path in _INFO_PATHS),
        Route("/metrics", server.show_metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, api_key=api_key, is_local=is_local)],
        exception_handlers={HTTPException: _say_http_error, HttpResponseError: _say_error},
        lifespan=lifespan,
    )


class _Server:
    """The routes that need the model."""

    def __init__(
        self, service: ChatService, worker: Worker, max_body_bytes: int, max_body_seconds: float
    ) -> None:
        self.worker = worker
        self._metrics = Metrics(lambda: self.worker.num_waiting)
        service.on_usage = self._metrics.count_usage
        self._routes = Routes(service)
        self._max_body_bytes = max_body_bytes
        self._max_body_seconds = max_body_seconds

    async def info(self, request: HttpRequest) -> Response:
        """What is known without running the model."""
        return to_response(self._routes.respond(self._translate(request)))

    async def show_metrics(self, _request: HttpRequest) -> Response:
        """`/metrics`."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def chat(self, request: HttpRequest) -> Response:
        """Queue a request, and give it up when its client goes away."""
        start = time.monotonic()
        path = request.url.path
        try:
            content = await self._receive_body(request)
            translated = self._translate(request, content)
            job = self.worker.submit(lambda cancel: self._routes.respond(translated, cancel))
            reply = await _unless_disconnected(request, job)
        except HttpResponseError as error:
            self._metrics.count_request(path, error.status_code)
            raise
        except ClientDisconnect:
            self._metrics.count_request(path, _CLIENT_CLOSED_REQUEST)
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        self._metrics.count_request(path, reply.status)
        if isinstance(reply.body, bytes):
            self._metrics.time_request(time.monotonic() - start)
            return to_response(reply)
        return to_response(reply, self._timed(job, start))

    async def _timed(self, job: Job, start: float) -> AsyncIterator[bytes]:
        is_first = True
        body = job.body()
        try:
            async for part in body:
                if is_first:
                    self._metrics.time_first_token(time.monotonic() - start)
                    is_first = False
                yield part
        finally:
            # Here too when the client went away in the middle.
            job.cancel.set()
            self._metrics.time_request(time.monotonic() - start)

    @staticmethod
    def _translate(request: HttpRequest, content: bytes = b"") -> Request:
        # Starlette leaves the body of an answer to HEAD out.
        method = "GET" if request.method == "HEAD" else request.method
        return Request(method, request.url.path, dict(request.headers), content)

    async def _receive_body(self, request: HttpRequest) -> bytes:
        try:
            return await asyncio.wait_for(self._read_body(request), self._max_body_seconds)
        except asyncio.TimeoutError:  # in Python 3.10 another than TimeoutError
            raise HttpResponseError(
                408,
                f"the request did not arrive within {self._max_body_seconds:g} seconds",
                headers={"connection": "close"},  # more of it may still come
            ) from None

    async def _read_body(self, request: HttpRequest) -> bytes:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > self._max_body_bytes:
                raise HttpResponseError(
                    413,
                    f"the request is larger than {self._max_body_bytes:,} bytes: send smaller "
                    "images",
                )
        return bytes(content)


async def _unless_disconnected(request: HttpRequest, job: Job) -> Reply:
    """The job's reply; a client that goes away before it comes cancels the job."""

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    reply = asyncio.ensure_future(job.reply())
    gone = asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait((reply, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not reply.done():
            job.cancel.set()
            reply.cancel()
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
    if reply.cancelled() or not reply.done():
        raise ClientDisconnect
    return reply.result()


async def _say_error(_request: HttpRequest, error: Exception) -> Response:
    if not isinstance(error, HttpResponseError):
        raise error
    return to_response(error)


async def _say_http_error(request: HttpRequest, error: Exception) -> Response:
    """Starlette's own errors (no such path, no such method) in the API's shape."""
    if not isinstance(error, HTTPException):
        raise error
    message = f"{request.method} {request.url.path}: {error.detail}"
    return to_response(HttpResponseError(error.status_code, message, headers=error.headers))
