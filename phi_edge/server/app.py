"""The application: routes, limits, and requests that are given up."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from phi_edge import __version__
from phi_edge.api.http import Reply, Request, json_reply
from phi_edge.api.routes import ROUTES, Route, Routes, find_route
from phi_edge.api.service import ChatService
from phi_edge.errors import HttpResponseError

from .guard import Guard
from .metrics import Metrics
from .openapi import make_document
from .replies import ReturnedHeaders, to_response
from .worker import Job, Worker

MAX_BODY_BYTES = 32 * 2**20
MAX_WAITING = 8
# From the head of a request to the end of its body.
MAX_BODY_SECONDS = 60.0
# Clients give up after ten minutes, by default; this ends what an open connection holds.
TIMEOUT_SECONDS = 3600.0
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
    server = _Application(
        service,
        Worker(max_waiting, timeout),
        max_body_bytes,
        max_body_seconds,
        make_document(__version__, (*ROUTES, *SERVER_ROUTES), needs_key=api_key is not None),
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.worker.close)

    open_paths = {route.path for route in SERVER_ROUTES if not route.needs_key}
    guard = Middleware(Guard, api_key=api_key, open_paths=open_paths, is_local=is_local)
    app = Starlette(middleware=[Middleware(ReturnedHeaders), guard], lifespan=lifespan)
    app.router.default = server  # the table has the routes
    return app


class _Application:
    """Answers requests, those that take the model through a queue."""

    def __init__(
        self,
        service: ChatService,
        worker: Worker,
        max_body_bytes: int,
        max_body_seconds: float,
        document: dict[str, Any],
    ) -> None:
        self.worker = worker
        self._metrics = Metrics(lambda: self.worker.num_waiting)
        self._routes = Routes(service, self._metrics.count_usage)
        self._max_body_bytes = max_body_bytes
        self._max_body_seconds = max_body_seconds
        self._document = document

    def openapi(self, _request: Request, _cancel: object) -> Reply:
        """Give the OpenAPI document."""
        return json_reply(self._document)

    def health(self, _request: Request, _cancel: object) -> Reply:
        """Tell that the server is there."""
        return json_reply({"status": "ok"})

    def metrics(self, _request: Request, _cancel: object) -> Reply:
        """Give the counters, for Prometheus."""
        return Reply(
            200, {"content-type": "text/plain; version=0.0.4; charset=utf-8"}, self._metrics.text()
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        try:
            response = await self._answer(HttpRequest(scope, receive))
        except HttpResponseError as error:
            response = to_response(error)
        await response(scope, receive, send)

    async def _answer(self, http: HttpRequest) -> Response:
        # Starlette leaves the body of an answer to HEAD out.
        method = "GET" if http.method == "HEAD" else http.method
        # Not the URL's path: a URL is built of the Host header, too.
        request = Request(method, http.scope["path"], dict(http.headers))
        route = find_route((*ROUTES, *SERVER_ROUTES), request)
        if route.runs_model:
            return await self._queue(route, request, http)
        owner = self if route in SERVER_ROUTES else self._routes
        return to_response(route.answer(owner, request, None))

    async def _queue(self, route: Route[Routes], request: Request, http: HttpRequest) -> Response:
        """Answer in the worker's thread, and give it up when the client goes away."""
        start = time.monotonic()
        try:
            request = dataclasses.replace(request, body=await self._receive_body(http))
            job = self.worker.submit(lambda cancel: route.answer(self._routes, request, cancel))
            reply = await _unless_disconnected(http, job)
        except HttpResponseError as error:
            self._metrics.requests.labels(route.path, error.status_code).inc()
            raise
        except ClientDisconnect:
            self._metrics.requests.labels(route.path, _CLIENT_CLOSED_REQUEST).inc()
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        self._metrics.requests.labels(route.path, reply.status).inc()
        if isinstance(reply.body, bytes):
            self._metrics.request_seconds.observe(time.monotonic() - start)
            return to_response(reply)
        return to_response(reply, self._timed(job, start))

    async def _timed(self, job: Job, start: float) -> AsyncIterator[bytes]:
        is_first = True
        body = job.body()
        try:
            async for part in body:
                if is_first:
                    self._metrics.first_token_seconds.observe(time.monotonic() - start)
                    is_first = False
                yield part
        finally:
            # Here too when the client went away in the middle.
            job.cancel.set()
            self._metrics.request_seconds.observe(time.monotonic() - start)

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
    """Wait for the job's reply; a client that goes away before cancels the job."""

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


# What a server has beyond the service.
SERVER_ROUTES: tuple[Route[_Application], ...] = (
    Route("GET", "/metrics", _Application.metrics),
    Route("GET", "/openapi.json", _Application.openapi, reply=dict[str, Any]),
    Route("GET", "/health", _Application.health, needs_key=False, reply=dict[str, str]),
)
