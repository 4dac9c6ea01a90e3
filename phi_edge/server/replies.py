"""Replies and errors of the core as Starlette's responses."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse

from phi_edge.api.http import Reply, error_reply
from phi_edge.errors import PhiEdgeError


def to_response(answer: Reply | PhiEdgeError, body: AsyncIterator[bytes] | None = None) -> Response:
    """Make the response for a reply or an error; `body` has the parts of a streamed one."""
    reply = answer if isinstance(answer, Reply) else error_reply(answer)
    if isinstance(reply.body, bytes):
        return Response(reply.body, reply.status, dict(reply.headers))
    if body is None:
        raise TypeError("a streamed reply needs its body")
    return StreamingResponse(body, reply.status, dict(reply.headers))
