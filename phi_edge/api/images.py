"""Image parts of a request -> Pillow images.

In two steps, so that all images of a request can be counted before one is decoded.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from PIL import Image

from phi_edge.errors import HttpResponseError, ImageError
from phi_edge.image.files import read_header

from .fetch import fetch_image

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


def read_image(url: str, field: str, allowed_hosts: Collection[str] = ()) -> Image.Image:
    """Read the image of an `image_url`, and no more of it than its header.

    The URL is a data URL in base64, or http(s) of an allowed host; see `fetch_image`. Messages
    name the request's field.

    Raises:
        HttpResponseError: 400; the URL is of another kind, or is no image that can be read.
    """
    with naming(field):
        return read_header(io.BytesIO(_read(url, allowed_hosts)))


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Say of the errors of an image which field it stands in.

    Raises:
        HttpResponseError: 400, in the place of any `ImageError`.
    """
    try:
        yield
    except ImageError as error:
        raise HttpResponseError(
            400, f"{field}: {error}", code="invalid_image", param=field
        ) from None


def _read(url: str, allowed_hosts: Collection[str]) -> bytes:
    if match := _DATA_URL.match(url):
        try:
            return base64.b64decode(url[match.end() :], validate=True)
        except ValueError:
            raise ImageError("the image's data is not valid base64") from None
    if url.lower().startswith(("http://", "https://")):
        return fetch_image(url, allowed_hosts)
    raise ImageError("an image is given as a data URL, `data:image/png;base64,...` for example")
