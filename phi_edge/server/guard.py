"""Who may talk to the server: keys, and browsers that were led here by another site."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from phi_edge.errors import HttpResponseError

from .replies import to_response

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


class Guard:
    """Middleware that turns strangers away.

    A web page can make its visitor's browser send requests to this machine. Its `Origin` is then
    another site's, or, if it had its own name resolve to this machine, the `Host` is that name.
    """

    def __init__(
        self, app: ASGIApp, api_key: str | None, open_paths: Collection[str], *, is_local: bool
    ) -> None:
        """Wrap an application.

        A key, if there is one, is asked for on every path but the open ones. A server that is local
        is reached by this machine alone, so its names are known.
        """
        self._app = app
        self._api_key = api_key
        self._open_paths = open_paths
        self._is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] == "http":
            try:
                self._check(scope["path"], Headers(scope=scope))
            except HttpResponseError as error:
                await to_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        host = _host_of(f"//{headers.get('host', '')}")
        if self._is_local and host not in LOOPBACK_HOSTS:
            raise HttpResponseError(403, f"this server is not {host}: call it as localhost")
        origin = headers.get("origin")
        if origin is not None and (_host_of(origin) or origin) not in LOOPBACK_HOSTS | {host}:
            raise HttpResponseError(403, f"web pages of {origin} may not use this server")
        if (
            self._api_key is not None
            and path not in self._open_paths
            and not self._has_key(headers)
        ):
            raise HttpResponseError(
                401,
                "a key is needed: send it as `Authorization: Bearer KEY` or `api-key: KEY`",
                headers={"www-authenticate": "Bearer"},
            )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (token if scheme.lower() == "bearer" else "", headers.get("api-key", ""))
        wanted = (self._api_key or "").encode()
        # Every comparison is made, and none stops at the first difference.
        matches = [hmac.compare_digest(key.encode(), wanted) for key in given]
        return any(matches)


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # brackets that hold no IPv6 address
        return None
