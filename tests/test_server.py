"""The local server, over real sockets."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

import phi_edge
from phi_edge.api.service import ChatService
from phi_edge.engine.ort import OrtEngine
from phi_edge.server.app import make_app
from phi_edge.server.run import is_loopback, serve

from .serving import serving, wait_until
from .sessions import Intercept, Intercepted, never_ending, once

EVERYWHERE = "0.0.0.0"  # noqa: S104
USER = {"role": "user", "content": "What is the sea?"}
BODY: dict[str, Any] = {"messages": [USER], "max_tokens": 6}
CHAT = "/v1/chat/completions"


def metric(client: httpx.Client, name: str) -> float:
    """A value of `/metrics`; 0 while there is none."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    return 0.0


@pytest.fixture(scope="module")
def long(service: ChatService) -> dict[str, Any]:
    """A request that still runs when the test looks: it says "k" again and again."""
    letter = str(service.model.tokenizer.token_to_id("k"))
    return {**BODY, "max_tokens": 50_000, "stream": True, "logit_bias": {letter: 100}}


@pytest.fixture(scope="module")
def client(service: ChatService) -> Iterator[httpx.Client]:
    with serving(service) as client:
        yield client


@pytest.fixture
def own_service(model: phi_edge.Model, own_engine: OrtEngine) -> ChatService:
    """A service whose engine a test may change; no run is kept, since runs keep their sessions."""
    bare = phi_edge.Model(model.manifest, model.tokenizer, own_engine, prefix_cache_bytes=0)
    return ChatService(bare)


def intercept(engine: OrtEngine, monkeypatch: pytest.MonkeyPatch, function: Intercept) -> None:
    """Have a function between the engine and its decoder."""
    monkeypatch.setattr(engine, "decoder", Intercepted(engine.decoder, function))


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


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert error["status"] == response.status_code
    return error


# Routes


@pytest.mark.parametrize("path", ["/chat/completions", "/models/chat/completions", CHAT])
def test_chat(client: httpx.Client, path: str) -> None:
    whole = client.post(path, params={"api-version": "2024-05-01-preview"}, json=BODY)
    assert whole.status_code == 200
    choice = whole.json()["choices"][0]
    with client.stream("POST", path, json={**BODY, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *lines, last = [line for line in response.iter_lines() if line]
    assert last == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == choice["message"]["content"]


def test_what_is_there(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert info["model_type"] == "chat-completions"
    assert client.get("/models/info").json() == info
    (described,) = client.get("/v1/models").json()["data"]
    assert described["id"] == info["model_name"]
    assert client.get(f"/v1/models/{described['id']}").json() == described
    assert client.get("/health").json() == {"status": "ok"}
    assert client.head("/info").status_code == 200


def test_what_is_not_there(client: httpx.Client) -> None:
    assert "/nothing" in error_of(client.get("/nothing"))["message"]
    assert client.get("/v1/models/other").status_code == 404
    wrong_method = client.get(CHAT)
    assert wrong_method.status_code == 405
    assert wrong_method.headers["allow"] == "POST"


def test_extra_parameters(client: httpx.Client) -> None:
    body = {**BODY, "logprobs": True}

    def ask(**headers: str) -> httpx.Response:
        return client.post("/chat/completions", json=body, headers=headers)

    assert ask().status_code == 422
    assert ask(**{"extra-parameters": "sometimes"}).status_code == 400
    passed = ask(**{"extra-parameters": "pass-through"}).json()["choices"][0]
    assert len(passed["logprobs"]["content"]) == 6
    assert ask(**{"extra-parameters": "drop"}).json()["choices"][0]["logprobs"] is None


def test_bad_bodies(client: httpx.Client) -> None:
    assert "JSON" in error_of(client.post(CHAT, content=b"{"))["message"]
    assert error_of(client.post(CHAT, json={**BODY, "max_tokens": -1}))["param"] == "max_tokens"
    deep = b"[" * 100_000
    assert error_of(client.post(CHAT, content=deep))["status"] == 400


# Who may come in


@pytest.fixture(scope="module")
def guarded(service: ChatService) -> Iterator[TestClient]:
    """A server with a key."""
    with TestClient(make_app(service, api_key="sesame"), "http://localhost") as client:
        yield client


def routes(client: TestClient) -> Iterator[tuple[str, str]]:
    """Method and path of whatever the application answers, and of what it does not."""
    app: Any = client.app
    for route in app.routes:
        assert isinstance(route, Route), "what a mounted application answers is not known here"
        for method in [*(route.methods or ()), "OPTIONS", "DELETE"]:
            yield method, re.sub(r"{.*?}", "x", route.path)
    yield "GET", "/nothing"


def test_every_route_but_health_asks_for_the_key(guarded: TestClient) -> None:
    assert guarded.get("/health").status_code == 200
    for method, path in routes(guarded):
        for headers in ({}, {"api-key": "sesam"}, {"Authorization": "Bearer sesame2"}):
            refused = guarded.request(method, path, headers=headers)
            assert (refused.status_code == 401) == (path != "/health"), (method, path)
        reached = guarded.request(method, path, headers={"api-key": "sesame"})
        assert reached.status_code != 401


def test_no_route_tells_a_browser_that_other_sites_may_read_it(guarded: TestClient) -> None:
    key = {"api-key": "sesame"}
    for method, path in routes(guarded):
        for origin in ("http://localhost:3000", "https://attacker.example", "null"):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            for headers in (asked, {**asked, **key}):
                reply = guarded.request(method, path, headers=headers)
                assert not any(name.startswith("access-control") for name in reply.headers)
                assert (reply.status_code == 403) == ("localhost" not in origin)


def test_every_route_checks_the_name_that_it_is_called_by(guarded: TestClient) -> None:
    for method, path in routes(guarded):
        headers = {"Host": "attacker.example", "api-key": "sesame"}
        assert guarded.request(method, path, headers=headers).status_code == 403


def test_key(service: ChatService) -> None:
    with serving(service, api_key="sesame") as client:
        refused = client.post(CHAT, json=BODY, headers={"api-key": "wrong"})
        assert refused.status_code == 401
        assert "Bearer" in error_of(refused)["message"]
        for headers in ({"api-key": "sesame"}, {"Authorization": "Bearer sesame"}):
            assert client.post(CHAT, json=BODY, headers=headers).status_code == 200
        assert client.get("/info", headers={"Authorization": "Basic sesame"}).status_code == 401
        assert client.get("/info", headers={b"api-key": b"\xff"}).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "attacker.example"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "127.0.0.1.attacker.example"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_web_pages_of_others(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    """Neither another site's page nor one whose name was made to resolve to this machine."""
    assert client.get("/info", headers=headers).status_code == status


def test_a_server_for_others_takes_any_host(service: ChatService) -> None:
    with serving(service, api_key="sesame", is_local=False) as client:
        headers = {"api-key": "sesame", "Host": "laptop.example"}
        assert client.get("/info", headers=headers).status_code == 200
        same = {**headers, "Origin": "https://laptop.example"}
        assert client.get("/info", headers=same).status_code == 200
        other = {**headers, "Origin": "https://attacker.example"}
        assert client.get("/info", headers=other).status_code == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), (EVERYWHERE, False), ("me", False)],
)
def test_loopback(host: str, *, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_a_key_is_needed_where_others_reach(service: ChatService) -> None:
    with pytest.raises(ValueError, match="PHI_EDGE_API_KEY"):
        serve(service, host=EVERYWHERE, port=0, api_key=None, max_waiting=1, timeout=1)


# Load


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
    own_service: ChatService,
    own_engine: OrtEngine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stream: bool,
) -> None:
    """Within the run of a graph, which would not end by itself."""
    ended: list[bool] = []

    def wait(options: Any, run: Callable[[], Any]) -> None:
        try:
            never_ending(options, run)
        finally:
            ended.append(options.terminate)

    intercept(own_engine, monkeypatch, once(wait))
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
    own_service: ChatService, own_engine: OrtEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def wait(options: Any, run: Callable[[], Any]) -> None:
        begun.set()
        never_ending(options, run)

    intercept(own_engine, monkeypatch, once(wait))
    with serving(own_service, max_waiting=1) as client:
        running = in_thread(client.post, CHAT, json=BODY, timeout=2)
        begun.wait()
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=BODY, timeout=0.2)
            wait_until(lambda: metric(client, "phi_edge_requests_waiting") == 0)
        assert client.post(CHAT, json=BODY).status_code == 200
        assert isinstance(running.exception(), httpx.ReadTimeout)


def test_timeout(
    own_service: ChatService, own_engine: OrtEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a request that runs, and of one that waits; the next one is answered."""
    with serving(own_service, timeout=0.5) as client:
        with monkeypatch.context() as patch:
            intercept(own_engine, patch, never_ending)
            other = in_thread(client.post, CHAT, json=BODY)
            for late in (client.post(CHAT, json=BODY), other.result()):
                assert late.status_code == 408
                assert error_of(late)["code"] == "timeout"
                assert late.headers["x-should-retry"] == "false"
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
    own_service: ChatService,
    own_engine: OrtEngine,
    monkeypatch: pytest.MonkeyPatch,
    error: str,
    status: int,
    code: str,
) -> None:
    """Of whole answers and of streams, and the next request is answered rightly."""

    def fail(_options: Any, _run: Callable[[], Any]) -> None:
        raise RuntimeError(error)

    with serving(own_service) as client:
        expected = client.post(CHAT, json=BODY).json()["choices"]
        with monkeypatch.context() as patch:
            intercept(own_engine, patch, fail)
            failed = client.post(CHAT, json=BODY)
            assert (failed.status_code, error_of(failed)["code"]) == (status, code)
            streamed = client.post(CHAT, json={**BODY, "stream": True}).text
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


def test_a_failure_inside_is_an_error(
    service: ChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text stays in the log, and the next request is answered."""

    def fail(*_args: object) -> None:
        raise RuntimeError("secret")

    with serving(service) as client:
        with monkeypatch.context() as patch:
            patch.setattr(service, "complete", fail)
            failed = client.post(CHAT, json=BODY)
        assert failed.status_code == 500
        assert "secret" not in failed.text
        assert client.post(CHAT, json=BODY).status_code == 200


# The process


def is_open(url: str) -> bool:
    """Whether a server takes connections."""
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(("num_signals", "num_tokens"), [(1, 1500), (2, 50_000)])
def test_serve_command(
    compact_fp32: Path, long: dict[str, Any], num_signals: int, num_tokens: int
) -> None:
    """SIGTERM lets a running answer end, and nobody in; a second one ends it."""
    command = [sys.executable, "-m", "phi_edge", "serve", "--model", str(compact_fp32)]
    command += ["--port", "0"]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stderr is not None
        url = None
        while url is None:
            line = process.stderr.readline()
            assert line
            url = re.search(r"http://127\.0\.0\.1:\d+", line)
        body = {**long, "max_tokens": num_tokens}
        with httpx.stream("POST", url[0] + CHAT, json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_open(url[0]))
            if num_signals > 1:
                process.send_signal(signal.SIGTERM)
                with suppress(httpx.RemoteProtocolError):  # cut off
                    list(lines)
            else:
                *_, last = [line for line in lines if line]
                assert last == "data: [DONE]"
        log = process.stderr.read()
        assert "Traceback" not in log
        assert "shutdown exceeded" not in log
        assert process.wait(60) == 0


def test_serve_without_its_extra(compact_fp32: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from phi_edge.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--model", str(compact_fp32)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "phi-edge[server]" in done.stderr
