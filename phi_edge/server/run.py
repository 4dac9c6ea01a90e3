"""Runs the application on uvicorn."""

from __future__ import annotations

import ipaddress
import logging
from types import FrameType
from typing import Any

import uvicorn

from phi_edge.api.service import ChatService

from .app import make_app
from .guard import LOOPBACK_HOSTS

logger = logging.getLogger(__name__)

# How long running answers may go on after SIGTERM.
_GRACE_SECONDS = 10


class _UvicornServer(uvicorn.Server):
    """Ends with exit code 0 on a signal, and at once on a second one."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Uvicorn's own has SIGTERM end the process by that signal, and waits at a second one."""
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, *args: Any, **arguments: Any) -> None:
        """Uvicorn's own leaves the application's end out where it is forced."""
        await super().shutdown(*args, **arguments)
        if self.force_exit:
            await self.lifespan.shutdown()


def is_loopback(host: str) -> bool:
    """Tell whether a host to bind to is reached by this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOOPBACK_HOSTS


def serve(
    service: ChatService,
    *,
    host: str,
    port: int,
    api_key: str | None,
    max_waiting: int,
    timeout: float,
) -> None:
    """Serve on an address until SIGTERM or SIGINT; port 0 takes any free one.

    Running answers may go on for 10 seconds then, or until a second signal.

    Raises:
        ValueError: Others could reach the address, and there is no key.
    """
    is_local = is_loopback(host)
    if not is_local and not api_key:
        raise ValueError(
            f"{host} can be reached from other machines: set a key with --api-key or "
            "PHI_EDGE_API_KEY, or bind to 127.0.0.1"
        )
    app = make_app(
        service, api_key=api_key, is_local=is_local, max_waiting=max_waiting, timeout=timeout
    )
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        server_header=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    _UvicornServer(config).run()
