"""Image files: what is read, how large it may be, and what is said of a bad one."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from phi_edge.errors import ImageError, shorten

logger = logging.getLogger(__name__)

# A path, the bytes of an image file, a decoded image, or uint8 [height, width (, 3 or 4)].
ImageSource = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]

MAX_PIXELS_VARIABLE = "PHI_EDGE_MAX_IMAGE_PIXELS"
# 201 MB as RGB. Pillow itself opens none with more than twice its `Image.MAX_IMAGE_PIXELS`.
_DEFAULT_MAX_PIXELS = 2**26
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
# Some photos are several JPEGs in a file.
_SAME_FORMATS = {"MPO": "JPEG"}
# EXIF orientations of images that are turned by 90 degrees.
_SIDEWAYS = (5, 6, 7, 8)
_ADDRESS = re.compile(r"data:|\w+://")
_MAX_SHOWN_CHARACTERS = 200
# What errors call an image that is no file.
_DATA = "the data"
# Formats that images are exchanged in. Pillow reads more, some through programs of their own
# (PostScript), and each is one more decoder for damaged data. HEIF is a plugin's.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM", "ICO")


def to_image(source: ImageSource) -> Image.Image:
    """Make a Pillow image of whatever an image is given as.

    Args:
        source: A path or the bytes of a file, as in `open_image`; a Pillow image, which is turned
            upright as its EXIF orientation says, too; or an array uint8 [height, width] of grey,
            or [height, width, 3 or 4] of RGB(A).

    Raises:
        ImageError: It is no image, damaged, or an array of another shape or type.
        TypeError: It is none of these.
    """
    if isinstance(source, Image.Image):
        with decoding("the image"):
            return source if _orientation(source) == 1 else ImageOps.exif_transpose(source)
    if isinstance(source, bytes):
        return open_image(io.BytesIO(source))
    if isinstance(source, str | Path):
        return open_image(_to_path(source))
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise TypeError(
        "an image is a path, bytes, a Pillow image or a NumPy array, not "
        f"{type(source).__module__}.{type(source).__qualname__}"
    )


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    has_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not has_shape or not array.size:
        raise ImageError(
            f"the array is {array.dtype} {list(array.shape)}, and an image is uint8 "
            "[height, width], [height, width, 3] or [height, width, 4], with values from 0 to 255"
        )
    return Image.fromarray(array)


def to_file(source: ImageSource, image_format: str | None = None) -> tuple[bytes, str]:
    """Make an image file of whatever an image is given as, and tell its media type.

    Files stay as they are; anything else becomes PNG.

    Args:
        source: As in `to_image`.
        image_format: That of a file, "jpeg" for example; its header tells when None.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: It cannot be read, or is no image where that was looked at.
        TypeError: As in `to_image`.
    """
    if isinstance(source, bytes | str | Path):
        content = source if isinstance(source, bytes) else _read(_to_path(source))
        if image_format is not None:
            return content, f"image/{image_format}"
        kind = read_header(io.BytesIO(content)).format or ""
        return content, Image.MIME.get(_SAME_FORMATS.get(kind, kind), f"image/{kind.lower()}")
    image = to_image(source)
    if image.mode == "I":
        image = image.convert("I;16" if np.asarray(image).max() > 255 else "L")
    elif image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), Image.MIME["PNG"]


def _to_path(source: str | Path) -> Path:
    """Make a path that may name a file.

    Raises:
        ImageError: It cannot; it is an address, for example.
    """
    text = str(source)
    if isinstance(source, str) and _ADDRESS.match(source):
        raise ImageError(f"{text[:40]!r} is an address, and nothing is fetched: give a file")
    if "\0" in text:
        raise ImageError(
            f"{shorten(text, _MAX_SHOWN_CHARACTERS)!r} is no path: it has null characters"
        )
    return Path(source)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ImageError(
            f"{shorten(str(path), _MAX_SHOWN_CHARACTERS)} cannot be read: {error.strerror}"
        ) from None


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Read an image file, or what one holds, turned upright as its EXIF orientation says.

    The number of pixels is taken from the header and checked before anything is decoded. Of an
    animation, only the first frame is. The decoder's own words are kept from the error, since
    they may tell of this process; the log has them at level DEBUG.

    Args:
        source: In one of the usual formats: PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000,
            PPM, ICO; HEIF where a Pillow plugin for it is registered.

    Raises:
        ImageError: The file is missing, no image, damaged, or has more pixels than
            PHI_EDGE_MAX_IMAGE_PIXELS (67,108,864 when it is not set).
    """
    if not isinstance(source, Path):
        return decode_image(read_header(source))
    with _opening(source) as (file, name):
        return decode_image(read_header(file, name), name)


def read_size(path: Path) -> tuple[int, int]:
    """Read the width and height in pixels that an image file has once it is upright.

    Raises:
        ImageError: As in `open_image`; its pixels are not looked at.
    """
    with _opening(path) as (file, name), decoding(name):
        header = read_header(file, name)
        return header.size[::-1] if _orientation(header) in _SIDEWAYS else header.size


def _orientation(image: Image.Image) -> int:
    orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation


@contextmanager
def _opening(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Open an image file, and tell what errors call it.

    Raises:
        ImageError: It cannot be opened.
    """
    name = shorten(str(path), _MAX_SHOWN_CHARACTERS)
    try:
        with path.open("rb") as file:
            yield file, name
    except FileNotFoundError:
        raise ImageError(f"there is no image at {name}") from None
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}") from None


def read_header(file: BinaryIO, name: str = _DATA) -> Image.Image:
    """Read the header of an image file, which stays open until the image is decoded.

    The image's size is that of the file, before it is turned upright. Errors call it `name`.

    Raises:
        ImageError: It is no image, or has too many pixels.
    """
    Image.init()
    formats = [each for each in _FORMATS if each in Image.OPEN]
    with decoding(name):
        try:
            image = Image.open(file, formats=formats)
        except UnidentifiedImageError:
            file.seek(0)
            raise ImageError(f"{name} {_describe_unknown(file.read(256))}") from None
        check_size(image, name)
        return image


def decode_image(header: Image.Image, name: str = _DATA) -> Image.Image:
    """Decode what `read_header` gave, which is of no use then, and turn it upright.

    Raises:
        ImageError: It is damaged.
    """
    with decoding(name):
        try:
            return ImageOps.exif_transpose(header)
        finally:
            header.close()


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises for damaged data, which may be anything, into `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name} {_too_large(Image.MAX_IMAGE_PIXELS)}") from None
    except MemoryError:
        raise ImageError(f"{name} needs more memory to decode than there is") from None
    except Exception as error:  # noqa: BLE001
        logger.debug("decoding %s: %s: %s", name, type(error).__name__, error)
        raise ImageError(f"{name} cannot be decoded: it is damaged or cut short") from None


def _describe_unknown(head: bytes) -> str:
    """Say why a file that begins so is not read, and what to do."""
    if head[4:8] == b"ftyp":
        return (
            "is HEIC or AVIF, or a video, and no decoder for it is installed: save it as JPEG or "
            "PNG, or in Python register one (`pillow_heif.register_heif_opener()`)"
        )
    if b"<svg" in head.lower() or head.lstrip().startswith(b"<?xml"):
        return "is an SVG drawing, or other XML, and has no pixels: render it to PNG first"
    return "is not an image in a format that is read: save it as PNG or JPEG"


def _too_large(limit: int | None) -> str:
    return (
        f"has more pixels than the {limit or 0:,} that are allowed: scale it down, or set "
        f"{MAX_PIXELS_VARIABLE}"
    )


def check_size(image: Image.Image, name: str) -> None:
    """Check an image's width and height, which are known before it is decoded.

    Raises:
        ImageError: It has no pixels, or too many.
    """
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels ({image.width} x {image.height})")
    text = os.environ.get(MAX_PIXELS_VARIABLE, str(_DEFAULT_MAX_PIXELS))
    if not text.isdecimal():
        raise ImageError(f"{MAX_PIXELS_VARIABLE} has to be a number of pixels, not {text!r}")
    if image.width * image.height > int(text):
        raise ImageError(f"{name} {_too_large(int(text))}")
