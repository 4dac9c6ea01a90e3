"""A server on a free port, for the tests that need one, and what it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from phi_edge.api.service import ChatService
from phi_edge.server.app import make_app
from tests.helpers.requests import body

CHAT = "/v1/chat/completions"
BODY = body()


@contextmanager
def serving(service: ChatService, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a server on a free port."""
    config = uvicorn.Config(make_app(service, **settings), port=0, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        (listener,) = server.servers
        port = listener.sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def metric(client: httpx.Client, name: str) -> float:
    """A value of `/metrics`; 0 while there is none."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    return 0.0


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert error["status"] == response.status_code
    return error
