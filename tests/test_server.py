"""The local server, over real sockets."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from phi_edge.api.service import ChatService
from phi_edge.server.app import make_app
from phi_edge.server.run import is_loopback, serve

from .serving import serving, wait_until

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
        serve(service, host=EVERYWHERE, port=0, api_key=None, max_waiting=1)


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


def test_serve_command(compact_fp32: Path, long: dict[str, Any]) -> None:
    """SIGTERM lets a running answer end."""
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
        body = {**long, "max_tokens": 500}
        with httpx.stream("POST", url[0] + CHAT, json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            *_, last = [line for line in lines if line]
        assert last == "data: [DONE]"
        log = process.stderr.read()
        assert "Traceback" not in log
        assert process.wait(60) in (0, -signal.SIGTERM)


def test_serve_without_its_extra(compact_fp32: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from phi_edge.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--model", str(compact_fp32)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "phi-edge[server]" in done.stderr
