"""Image URLs: which are followed, and where to."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from PIL import Image

from phi_edge import HttpResponseError
from phi_edge.api import fetch
from phi_edge.api.images import read_image

LOCAL = "127.0.0.1"


class Site(BaseHTTPRequestHandler):
    """Gives a picture, and does what a hostile site would."""

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
            self.rfile.read(1)  # until the client hangs up
            return
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("location", "/picture")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        file = io.BytesIO()
        Image.new("RGB", (6, 4)).save(file, "PNG")
        self.wfile.write(b"x" * 2000 if self.path == "/large" else file.getvalue())

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with HTTPServer((LOCAL, 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{LOCAL}:{server.server_port}"
        server.shutdown()
        thread.join()


def refusal(url: str, *allowed: str) -> str:
    with pytest.raises(HttpResponseError) as raised:
        read_image(url, "url", allowed)
    assert raised.value.status_code == 400
    assert raised.value.param == "url"
    return raised.value.error.message


def test_an_allowed_address(site: str) -> None:
    assert read_image(f"{site}/picture?size=1", "url", [LOCAL]).size == (6, 4)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x.png",
        "http://127.0.0.1/x.png",
        "http://example.org@example.com/x.png",
        "http://example.org.example.com/x.png",
        "http:///x.png",
    ],
)
def test_other_hosts(url: str) -> None:
    assert "not fetched from" in refusal(url, "example.org")


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "FILE:///etc/passwd", "ftp://example.org/x", "/etc/passwd", "gopher:x"],
)
def test_other_schemes(url: str) -> None:
    assert "data URL" in refusal(url, "example.org", "")


@pytest.mark.parametrize("url", ["http://[", "http://example.org:port/", "https://[::1/x"])
def test_broken_urls(url: str) -> None:
    assert "not valid" in refusal(url, "example.org")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.8", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1"),
        *("::", "::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1"),
    ],
)
def test_a_name_that_leads_inside(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Even when it is one of several addresses."""

    def resolve(*_args: Any, **_kwargs: Any) -> list[Any]:
        return [(0, 0, 0, "", (name, 80)) for name in ("93.184.216.34", address)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert "not public" in refusal("http://images.example/x.png", "images.example")


def test_a_name_is_resolved_once(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked is what is connected to."""
    real, lookups = socket.getaddrinfo, []

    def resolve(host: str, *args: Any, **kwargs: Any) -> Any:
        lookups.append(host)
        return real(LOCAL if host == "images.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetch, "_is_public", lambda address: address == LOCAL)
    url = site.replace(LOCAL, "images.example")
    assert read_image(f"{url}/picture", "url", ["Images.example"]).size == (6, 4)
    assert lookups == ["images.example", LOCAL]


def test_redirects_are_not_followed(site: str) -> None:
    assert "302" in refusal(f"{site}/elsewhere", LOCAL)


def test_size_and_time_are_bounded(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_FETCHED_BYTES", 1000)
    assert "larger than 1,000 bytes" in refusal(f"{site}/large", LOCAL)
    monkeypatch.setattr(fetch, "_FETCH_SECONDS", 0.2)
    assert "within 0 seconds" in refusal(f"{site}/slow", LOCAL)


def test_nobody_answers() -> None:
    with socket.create_server((LOCAL, 0)) as listener:
        port = listener.getsockname()[1]
    message = refusal(f"http://{LOCAL}:{port}/", LOCAL)
    assert message == f"url: the image could not be fetched from {LOCAL}"


def test_a_certificate_is_asked_for(site: str) -> None:
    assert "could not be fetched" in refusal(site.replace("http:", "https:"), LOCAL)
