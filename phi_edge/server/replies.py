"""Replies and errors of the core as Starlette's responses, and what all of them may carry."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi_edge.api.http import Reply, error_reply, returned_headers
from phi_edge.errors import PhiEdgeError


def to_response(answer: Reply | PhiEdgeError, body: AsyncIterator[bytes] | None = None) -> Response:
    """Make the response for a reply or an error; `body` has the parts of a streamed one."""
    reply = answer if isinstance(answer, Reply) else error_reply(answer)
    if isinstance(reply.body, bytes):
        return Response(reply.body, reply.status, dict(reply.headers))
    if body is None:
        raise TypeError("a streamed reply needs its body")
    return StreamingResponse(body, reply.status, dict(reply.headers))


class ReturnedHeaders:
    """Middleware that repeats what a request wants to see again, whatever the answer is."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        returned = returned_headers(Headers(scope=scope)) if scope["type"] == "http" else {}

        async def send_returned(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(returned)
            await send(message)

        await self._app(scope, receive, send_returned if returned else send)
