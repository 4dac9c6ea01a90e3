"""The local server at work: limits, a queue, clients that leave, and runs that fail."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import httpx
import pytest
from typing_extensions import override

import phi_edge
from phi_edge.api.response import Completion
from phi_edge.api.service import ChatService

from .helpers.engines import WatchedEngine
from .helpers.serving import BODY, CHAT, error_of, metric, serving, wait_until
from .helpers.sessions import Intercepted, let_run, never_ending, once


def in_thread(function: Callable[..., httpx.Response], *args: Any, **arguments: Any) -> Future[Any]:
    """A call that another thread makes."""
    with_result: Future[Any] = Future()

    def call() -> None:
        try:
            with_result.set_result(function(*args, **arguments))
        except httpx.HTTPError as error:
            with_result.set_exception(error)

    threading.Thread(target=call).start()
    return with_result


@pytest.fixture
def decoder(own_engine: WatchedEngine) -> Intercepted:
    """The decoder of `own_service`."""
    own_engine.decoder = decoder = Intercepted(own_engine.decoder)
    return decoder


@pytest.fixture
def own_service(model: phi_edge.Model, own_engine: WatchedEngine) -> ChatService:
    """A service with an engine of its own, which keeps nothing of earlier requests."""
    bare = phi_edge.Model(model.manifest, model.tokenizer, own_engine, prefix_cache_bytes=0)
    return ChatService(bare)


def test_body_limit(service: ChatService) -> None:
    with serving(service, max_body_bytes=1000) as client:
        large = json.dumps({**BODY, "user": "x" * 1000}).encode()
        assert client.post(CHAT, content=large).status_code == 413
        assert client.post(CHAT, content=iter([large[:600], large[600:]])).status_code == 413
        assert client.post(CHAT, json=BODY).status_code == 200


def test_queue_is_bounded(service: ChatService, long: dict[str, Any]) -> None:
    """One request runs and one waits; the third is told to come again, and later it may."""
    with (
        serving(service, max_waiting=1) as client,
        client.stream("POST", CHAT, json=long) as running,
    ):
        lines = running.iter_lines()  # closes the response when it is collected
        next(lines)
        waiting = threading.Thread(target=client.post, args=(CHAT,), kwargs={"json": BODY})
        waiting.start()
        wait_until(lambda: metric(client, "phi_edge_requests_waiting") == 1)
        refused = client.post(CHAT, json=BODY)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert error_of(refused)["code"] == "too_many_requests"
        running.close()
        waiting.join()
        assert client.post(CHAT, json=BODY).status_code == 200


def test_a_client_that_goes_away_stops_its_work(service: ChatService, long: dict[str, Any]) -> None:
    with serving(service) as client:
        with client.stream("POST", CHAT, json=long) as response:
            lines = response.iter_lines()
            next(lines)
        start = time.monotonic()
        assert client.post(CHAT, json=BODY).status_code == 200
        # Without being stopped, the first would have taken minutes.
        assert time.monotonic() - start < 20
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json={**long, "stream": False}, timeout=0.3)
        gone = f'phi_edge_requests_total{{path="{CHAT}",status="499"}}'
        wait_until(lambda: metric(client, gone) == 1)
        assert client.post(CHAT, json=BODY).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_in_prefill_frees_the_engine(
    own_service: ChatService, decoder: Intercepted, *, stream: bool
) -> None:
    """Within the run of a graph, which would not end by itself."""
    ended: list[bool] = []

    def wait(options: Any, run: Callable[[], Any]) -> None:
        try:
            never_ending(options, run)
        finally:
            ended.append(options.terminate)

    decoder.intercept = once(wait)
    with serving(own_service) as client:
        if stream:  # the first chunk comes after the prefill
            body = {**BODY, "stream": True}
            with (
                client.stream("POST", CHAT, json=body, timeout=0.3) as response,
                pytest.raises(httpx.ReadTimeout),
            ):
                response.read()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=BODY, timeout=0.3)
        wait_until(lambda: ended)
        assert client.post(CHAT, json=BODY).status_code == 200
    assert ended == [True]


def test_a_client_that_goes_away_leaves_the_queue(
    own_service: ChatService, decoder: Intercepted
) -> None:
    begun = threading.Event()

    def wait(options: Any, run: Callable[[], Any]) -> None:
        begun.set()
        never_ending(options, run)

    decoder.intercept = once(wait)
    with serving(own_service, max_waiting=1) as client:
        running = in_thread(client.post, CHAT, json=BODY, timeout=2)
        begun.wait()
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=BODY, timeout=0.2)
            wait_until(lambda: metric(client, "phi_edge_requests_waiting") == 0)
        assert client.post(CHAT, json=BODY).status_code == 200
        assert isinstance(running.exception(), httpx.ReadTimeout)


def test_timeout(own_service: ChatService, decoder: Intercepted) -> None:
    """Of a request that runs, and of one that waits; the next one is answered."""
    with serving(own_service, timeout=0.5) as client:
        decoder.intercept = never_ending
        other = in_thread(client.post, CHAT, json=BODY)
        for late in (client.post(CHAT, json=BODY), other.result()):
            assert late.status_code == 408
            assert error_of(late)["code"] == "timeout"
            assert late.headers["x-should-retry"] == "false"
        decoder.intercept = let_run
        assert client.post(CHAT, json=BODY).status_code == 200


def test_timeout_in_a_stream(service: ChatService, long: dict[str, Any]) -> None:
    """It ends with an error, not with a finish reason."""
    with serving(service, timeout=0.5) as client:
        with client.stream("POST", CHAT, json=long) as response:
            assert response.status_code == 200
            *_, error, done = [line for line in response.iter_lines() if line]
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "timeout"
        assert done == "data: [DONE]"
        assert client.post(CHAT, json=BODY).status_code == 200


def test_a_body_that_does_not_come(service: ChatService) -> None:
    """It is answered and its connection closed, though parts of it keep coming."""
    with serving(service, max_body_seconds=0.3) as client:
        address = (client.base_url.host, client.base_url.port or 0)
        with socket.create_connection(address, timeout=30) as slow:
            slow.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n".encode())
            slow.sendall(b"Content-Length: 1000\r\n\r\n")
            answer = b""
            slow.settimeout(0.1)
            with suppress(ConnectionError):  # what was on its way when it was closed
                while True:
                    with suppress(TimeoutError):
                        if not (part := slow.recv(4096)):
                            break
                        answer += part
                    slow.sendall(b" ")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert client.post(CHAT, json=BODY).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ("Status Message: std::bad_alloc", 503, "out_of_memory"),
        ("Non-zero status code", 500, "internal_server_error"),
    ],
)
def test_a_failed_run_is_an_error(
    own_service: ChatService, decoder: Intercepted, error: str, status: int, code: str
) -> None:
    """Of whole answers and of streams, and the next request is answered rightly."""

    def fail(_options: Any, _run: Callable[[], Any]) -> None:
        raise RuntimeError(error)

    with serving(own_service) as client:
        expected = client.post(CHAT, json=BODY).json()["choices"]
        decoder.intercept = fail
        failed = client.post(CHAT, json=BODY)
        assert (failed.status_code, error_of(failed)["code"]) == (status, code)
        streamed = client.post(CHAT, json={**BODY, "stream": True}).text
        decoder.intercept = let_run
        first, done = streamed.strip().split("\n\n")
        assert json.loads(first.removeprefix("data: "))["error"]["code"] == code
        assert done == "data: [DONE]"
        assert client.post(CHAT, json=BODY).json()["choices"] == expected


def test_metrics(service: ChatService) -> None:
    with serving(service) as client:
        usage = client.post(CHAT, json=BODY).json()["usage"]
        with client.stream("POST", CHAT, json={**BODY, "stream": True}) as response:
            response.read()
        assert client.post(CHAT, json={}).status_code == 400
        assert metric(client, "phi_edge_prompt_tokens_total") == 2 * usage["prompt_tokens"]
        assert metric(client, "phi_edge_completion_tokens_total") == 12
        answered = f'phi_edge_requests_total{{path="{CHAT}",status='
        assert metric(client, answered + '"200"}') == 2
        assert metric(client, answered + '"400"}') == 1
        assert metric(client, "phi_edge_time_to_first_token_seconds_count") == 1
        assert metric(client, "phi_edge_request_seconds_count") == 3


def test_a_failure_inside_is_an_error(model: phi_edge.Model) -> None:
    """Its text stays in the log, and the next request is answered."""
    errors: list[Exception] = [RuntimeError("secret")]

    class Failing(ChatService):
        @override
        def complete(self, *args: Any) -> Completion:
            if errors:
                raise errors.pop()
            return super().complete(*args)

    with serving(Failing(model)) as client:
        failed = client.post(CHAT, json=BODY)
        assert failed.status_code == 500
        assert "secret" not in failed.text
        assert client.post(CHAT, json=BODY).status_code == 200
