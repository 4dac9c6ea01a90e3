"""Replies and errors of the core as Starlette's responses."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse

from phi_edge.api.routes import Reply, error_reply
from phi_edge.errors import PhiEdgeError


def to_response(answer: Reply | PhiEdgeError, body: AsyncIterator[bytes] | None = None) -> Response:
    """The response for a reply or an error.

    Args:
        answer: What to send.
        body: The parts of a streamed body.
    """
    reply = answer if isinstance(answer, Reply) else error_reply(answer)
    if isinstance(reply.body, bytes):
        return Response(reply.body, reply.status, dict(reply.headers))
    if body is None:
        raise TypeError("a streamed reply needs its body")
    return StreamingResponse(body, reply.status, dict(reply.headers))
