"""The local server, over real sockets: its routes, and who may come in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from phi_edge.api.routes import ROUTES, Route
from phi_edge.api.service import ChatService
from phi_edge.server.app import SERVER_ROUTES, make_app
from phi_edge.server.run import is_loopback, serve

from .helpers.serving import BODY, CHAT, error_of, serving

EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.fixture(scope="module")
def client(service: ChatService) -> Iterator[httpx.Client]:
    with serving(service) as client:
        yield client


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


# The client's own id of a request

ASKS_FOR_ITS_ID = {"x-ms-client-request-id": "8d7c", "x-ms-return-client-request-id": "True"}


@pytest.mark.parametrize(
    ("status", "path", "content", "settings"),
    [
        (200, "/chat/completions", BODY, {}),
        (200, "/chat/completions", {**BODY, "stream": True}, {}),
        (400, "/chat/completions", {**BODY, "max_tokens": -1}, {}),
        (401, "/chat/completions", BODY, {"api_key": "sesame"}),
        (404, "/nothing", BODY, {}),
        (405, "/info", BODY, {}),
        (413, "/chat/completions", BODY, {"max_body_bytes": 8}),
        (429, "/chat/completions", BODY, {"max_waiting": 0}),
    ],
)
def test_a_client_gets_its_id_back(
    service: ChatService, status: int, path: str, content: object, settings: dict[str, Any]
) -> None:
    with TestClient(make_app(service, **settings), "http://localhost") as client:
        reply = client.post(path, json=content, headers=ASKS_FOR_ITS_ID)
        assert reply.status_code == status
        assert reply.headers["x-ms-client-request-id"] == "8d7c"
        for missing in ASKS_FOR_ITS_ID:
            headers = {**ASKS_FOR_ITS_ID, missing: ""}
            unasked = client.post(path, json=content, headers=headers)
            assert unasked.status_code == status
            assert "x-ms-client-request-id" not in unasked.headers


# Who may come in


@pytest.fixture(scope="module")
def guarded(service: ChatService) -> Iterator[TestClient]:
    """A server with a key."""
    with TestClient(make_app(service, api_key="sesame"), "http://localhost") as client:
        yield client


def requests() -> Iterator[tuple[str, str]]:
    """Method and path of whatever the application answers, and of what it does not."""
    table: list[Route[Any]] = [*ROUTES, *SERVER_ROUTES]
    assert len(table) > 5
    for route in table:
        path = route.path.replace("{model}", "x")
        for spelled in (path, f"{path}/", f"/models{path}"):
            for method in ("GET", "HEAD", "POST", "OPTIONS", "DELETE"):
                yield method, spelled
    yield "GET", "/nothing"


def test_every_route_but_health_asks_for_the_key(guarded: TestClient) -> None:
    assert guarded.get("/health").status_code == 200
    for method, path in requests():
        for headers in ({}, {"api-key": "sesam"}, {"Authorization": "Bearer sesame2"}):
            refused = guarded.request(method, path, headers=headers)
            assert (refused.status_code == 401) == (path != "/health"), (method, path)
        reached = guarded.request(method, path, headers={"api-key": "sesame"})
        assert reached.status_code != 401


@pytest.mark.parametrize(
    "host", ["localhost/chat/completions?", "localhost/metrics#", "localhost\\"]
)
def test_a_host_does_not_choose_the_route(guarded: TestClient, host: str) -> None:
    """A URL is built of it; what the key is asked for is what is answered."""
    reply = guarded.get("/health", headers={"Host": host})
    assert reply.status_code == 403 or reply.json() == {"status": "ok"}
    reply = guarded.post("/health", headers={"Host": host})
    assert reply.status_code in (403, 405)


def test_a_path_is_what_the_client_meant(guarded: TestClient) -> None:
    reply = guarded.get("/v1/models/a%3Fb%23c", headers={"api-key": "sesame"})
    assert reply.status_code == 404
    assert "no model a?b#c here" in reply.json()["error"]["message"]


def test_no_route_tells_a_browser_that_other_sites_may_read_it(guarded: TestClient) -> None:
    key = {"api-key": "sesame"}
    for method, path in requests():
        for origin in ("http://localhost:3000", "https://attacker.example", "null"):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            for headers in (asked, {**asked, **key}):
                reply = guarded.request(method, path, headers=headers)
                assert not any(name.startswith("access-control") for name in reply.headers)
                assert (reply.status_code == 403) == ("localhost" not in origin)


def test_every_route_checks_the_name_that_it_is_called_by(guarded: TestClient) -> None:
    for method, path in requests():
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
