"""Fetches images from hosts that were allowed, and from nowhere else.

A client of the server chooses the URL, so the URL must not reach what only this machine reaches
(server-side request forgery): the address is looked up once, checked, and connected to as it was
checked, so that a name that resolves differently the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Collection
from contextlib import suppress

from phi_edge.errors import ImageError

MAX_FETCHED_BYTES = 20 * 2**20
_FETCH_SECONDS = 20.0
_BLOCK_BYTES = 2**16


def fetch_image(url: str, allowed_hosts: Collection[str]) -> bytes:
    """Get what an http(s) URL of an allowed host holds, within 20 seconds.

    Redirects are not followed, and the environment's proxies are not used.

    Args:
        url: The URL.
        allowed_hosts: Names and addresses. A name has to resolve to public addresses alone;
            a private one is reached if it is allowed itself, as an address or as "localhost".

    Raises:
        ImageError: The host is not allowed, or does not give an image of at most 20 MB in time.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ImageError("the image's URL is not valid") from None
    if host not in {allowed.lower() for allowed in allowed_hosts}:
        raise ImageError(
            f"images are not fetched from {host}: send a data URL, or allow the host where the "
            "model is set up"
        )
    is_tls = parts.scheme.lower() == "https"
    deadline = time.monotonic() + _FETCH_SECONDS
    connection = http.client.HTTPConnection(host, port or (443 if is_tls else 80))
    try:
        # A socket that is there already is what the connection uses.
        connection.sock = _connect(host, connection.port, is_tls=is_tls)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        return _read(connection, target, deadline)
    except (OSError, http.client.HTTPException, UnicodeError):
        # What exactly went wrong may tell of the network that this machine is in.
        late = f" within {_FETCH_SECONDS:.0f} seconds" if time.monotonic() >= deadline else ""
        raise ImageError(f"the image could not be fetched from {host}{late}") from None
    finally:
        connection.close()


def _connect(host: str, port: int, *, is_tls: bool) -> socket.socket:
    """Connect to an address that was checked."""
    *others, last = _resolve(host, port)
    sock = None
    for address in others:
        with suppress(OSError):
            sock = socket.create_connection((address, port), _FETCH_SECONDS)
            break
    sock = sock or socket.create_connection((last, port), _FETCH_SECONDS)
    if not is_tls:
        return sock
    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not _is_named_so(host) and not all(_is_public(address) for address in addresses):
        raise ImageError(
            f"{host} resolves to an address that is not public, so no image is fetched from it: "
            "allow the address itself if that is wanted"
        )
    return addresses


def _is_named_so(host: str) -> bool:
    """Tell whether an allowed host leaves no doubt where it leads."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    parsed = mapped or parsed
    return parsed.is_global and not parsed.is_multicast


def _read(connection: http.client.HTTPConnection, target: str, deadline: float) -> bytes:
    # A socket's own timeout starts again with every byte that arrives.
    timer = threading.Timer(deadline - time.monotonic(), _hang_up, [connection.sock])
    timer.daemon = True
    timer.start()
    try:
        connection.request("GET", target, headers={"Accept": "image/*"})
        with connection.getresponse() as reply:
            if reply.status != http.client.OK:
                raise ImageError(
                    f"the image could not be fetched: {connection.host} answered with status "
                    f"{reply.status}, and redirects are not followed"
                )
            content = reply.read(MAX_FETCHED_BYTES + 1)
    finally:
        timer.cancel()
    if len(content) > MAX_FETCHED_BYTES:
        raise ImageError(f"the image is larger than {MAX_FETCHED_BYTES:,} bytes")
    if time.monotonic() >= deadline:
        raise TimeoutError  # hung up in the middle, which may look like the end
    return content


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
