"""Image parts of a request -> Pillow images."""

from __future__ import annotations

import base64
import binascii
import io
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection
from http.client import HTTPMessage
from typing import IO

from PIL import Image

from phi_edge.errors import HttpResponseError, ImageError
from phi_edge.image import open_image

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_FETCH_SECONDS = 20
MAX_FETCHED_BYTES = 20 * 2**20


def read_image(url: str, field: str, allowed_hosts: Collection[str] = ()) -> Image.Image:
    """Read the image of an `image_url`.

    Args:
        url: A data URL in base64, or http(s) of an allowed host.
        field: The request's field that it stands in, for messages.
        allowed_hosts: Hosts that images may be fetched from; no other connection is made.

    Raises:
        HttpResponseError: 400; the URL is of another kind, or is no image that can be read.
    """
    if match := _DATA_URL.match(url):
        try:
            content = base64.b64decode(url[match.end() :], validate=True)
        except binascii.Error:
            raise _refuse(field, "the image's data is not valid base64") from None
    elif url.lower().startswith(("http://", "https://")):
        content = _fetch(url, field, allowed_hosts)
    else:
        raise _refuse(
            field, "an image is given as a data URL, `data:image/png;base64,...` for example"
        )
    try:
        return open_image(io.BytesIO(content))
    except ImageError as error:
        raise _refuse(field, str(error)) from None


def _fetch(url: str, field: str, allowed_hosts: Collection[str]) -> bytes:
    host = urllib.parse.urlsplit(url).hostname
    if host not in allowed_hosts:
        raise _refuse(
            field,
            f"images are not fetched from {host}: send a data URL, or allow the host where the "
            "model is set up",
        )
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(url, timeout=_FETCH_SECONDS) as reply:  # the host is an allowed one
            content: bytes = reply.read(MAX_FETCHED_BYTES + 1)
    except (OSError, urllib.error.URLError) as error:
        raise _refuse(field, f"the image could not be fetched: {error}") from None
    if len(content) > MAX_FETCHED_BYTES:
        raise _refuse(field, f"the image is larger than {MAX_FETCHED_BYTES:,} bytes")
    return content


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An allowed host must not send us to another."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        """Follow none: the redirect becomes an error."""


def _refuse(field: str, message: str) -> HttpResponseError:
    return HttpResponseError(400, f"{field}: {message}", code="invalid_image", param=field)
