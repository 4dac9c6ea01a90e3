"""Images that the golden data does not have: other modes, extreme shapes, damage."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import phi_edge
from phi_edge import ImageError
from phi_edge.image.crops import hd_image
from phi_edge.image.files import open_image, read_size

from .conftest import GOLDEN


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F"])
def test_every_mode(model: phi_edge.Model, mode: str) -> None:
    crops = model.preprocess(Image.new(mode, (40, 30)), num_crops=1)
    assert crops.pixel_values.shape == (2, 3, 336, 336)
    assert np.isfinite(crops.pixel_values).all()


def test_portrait_is_the_landscape_turned(model: phi_edge.Model) -> None:
    rng = np.random.default_rng(0)
    landscape = Image.fromarray(rng.integers(0, 256, (40, 100, 3), np.uint8))
    wide = model.preprocess(landscape, 4)
    tall = model.preprocess(landscape.transpose(Image.Transpose.TRANSPOSE), 4)
    assert tall.image_size == wide.image_size[::-1]
    np.testing.assert_allclose(
        tall.pixel_values[0], wide.pixel_values[0].transpose(0, 2, 1), atol=1e-5
    )


def test_default_number_of_crops(model: phi_edge.Model) -> None:
    square = Image.new("RGB", (500, 500))
    assert model.preprocess(square).num_tokens == model.preprocess(square, 4).num_tokens == 757


def test_too_long_and_thin(model: phi_edge.Model) -> None:
    for size in [(2000, 2), (2, 2000)]:
        with pytest.raises(ImageError, match="too long and thin"):
            model.preprocess(Image.new("RGB", size), 1)


def test_no_pixels(model: phi_edge.Model) -> None:
    with pytest.raises(ImageError, match="no pixels"):
        model.preprocess(Image.new("RGB", (0, 10)))


def test_the_size_of_an_image_that_cannot_be_opened(tmp_path: Path) -> None:
    """Looking at the size says what opening the image says."""
    (tmp_path / "text").write_text("no image")
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "text", tmp_path / ("x" * 300)):
        with pytest.raises(phi_edge.ImageError) as opening:
            open_image(path)
        with pytest.raises(phi_edge.ImageError) as reading:
            read_size(path)
        assert str(reading.value) == str(opening.value)


@pytest.mark.parametrize("num_crops", [0, -4])
def test_number_of_crops(model: phi_edge.Model, num_crops: int) -> None:
    with pytest.raises(ImageError, match="at least 1"):
        model.preprocess(Image.new("RGB", (10, 10)), num_crops)


def test_truncated_image(model: phi_edge.Model, tmp_path: Path) -> None:
    whole = (GOLDEN / "images" / "wide_90x60.png").read_bytes()
    path = tmp_path / "truncated.png"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(path)
    with Image.open(path) as image, pytest.raises(ImageError, match="cannot be decoded"):
        model.preprocess(image)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("hello")
    with pytest.raises(ImageError, match="not an image"):
        open_image(text)
    with pytest.raises(ImageError, match="no image at"):
        open_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(tmp_path)


def test_open_image_turns_it_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (20, 40)


# What files hold


def encoded(image: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def png_header(width: int, height: int) -> io.BytesIO:
    """A PNG of a few bytes that says it has so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [b"\x89PNG\r\n\x1a\n"]
    for name, content in ((b"IHDR", header), (b"IDAT", b"")):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        chunks += [struct.pack(">I", len(content)), name, content, checksum]
    return io.BytesIO(b"".join(chunks))


@pytest.mark.parametrize(
    ("width", "height"), [(8193, 8192), (13_000, 13_000), (50_000, 50_000), (2**31 - 1, 1)]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_more_pixels_than_allowed(width: int, height: int) -> None:
    """The header is enough to tell: there is nothing else to decode."""
    with pytest.raises(ImageError, match="PHI_EDGE_MAX_IMAGE_PIXELS"):
        open_image(png_header(width, height))


def test_the_limit_can_be_set(monkeypatch: pytest.MonkeyPatch, model: phi_edge.Model) -> None:
    image = Image.new("RGB", (40, 30))
    monkeypatch.setenv("PHI_EDGE_MAX_IMAGE_PIXELS", "1200")
    assert open_image(encoded(image, "PNG")).size == (40, 30)
    monkeypatch.setenv("PHI_EDGE_MAX_IMAGE_PIXELS", "1199")
    with pytest.raises(ImageError, match="1,199"):
        open_image(encoded(image, "PNG"))
    with pytest.raises(ImageError, match="1,199"):
        model.preprocess(image)
    monkeypatch.setenv("PHI_EDGE_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(ImageError, match="not 'many'"):
        open_image(encoded(image, "PNG"))


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)])
def test_a_line_of_pixels(model: phi_edge.Model, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="too long and thin"):
        model.preprocess(open_image(encoded(Image.new("L", size), "PNG")), 16)


def test_16_bit_grey_is_scaled() -> None:
    """Pillow alone would make white of everything above 255."""
    values = np.array([0, 128, 129, 257, 0x8000, 0xFFFF], np.uint16)
    bands = np.tile(values.repeat(336 // len(values)), (336, 1))

    def shown(image: Image.Image) -> list[int]:
        """The values of the bands; an image of the size of a crop is not resized."""
        return [int(value) for value in hd_image(image, 1)[0, :: 336 // len(values), 0]]

    for kind in ("PNG", "TIFF"):
        image = open_image(encoded(Image.fromarray(bands), kind))
        assert shown(image) == [0, 0, 1, 1, 128, 255]
    wide, narrow = (Image.fromarray(bands.astype(np.int32) // by) for by in (1, 257))
    assert shown(wide) == [0, 0, 1, 1, 128, 255]
    assert shown(narrow) == [0, 0, 0, 1, 127, 255]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    red = Image.new("RGB", (16, 16), "red")
    image = open_image(encoded(red.convert("CMYK"), kind))
    assert image.mode == "CMYK"
    shown = np.asarray(image.convert("RGB"), np.int16)
    assert np.abs(shown - (255, 0, 0)).max() < 4


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    shown = open_image(encoded(image, "PNG", transparency=1)).convert("RGB")
    assert np.asarray(shown)[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 100, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    animation = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.asarray(open_image(animation).convert("RGB")).max() == 0


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?><!-- --><svg/>', "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format"),
        (b"%PDF-1.7", "not an image in a format"),
        (b"", "not an image in a format"),
    ],
)
def test_formats_that_are_not_read(content: bytes, advice: str) -> None:
    with pytest.raises(ImageError, match=advice) as raised:
        open_image(io.BytesIO(content))
    assert "0x" not in str(raised.value)


def test_the_decoders_words_are_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(Image.new("RGB", (4, 4)), "PNG")
    for error in (RuntimeError("<Decoder at 0x7f00>"), zlib.error("x7f00"), MemoryError("x7f00")):
        monkeypatch.setattr(Image.Image, "load", Mock(side_effect=error))
        with pytest.raises(ImageError, match="decode") as raised:
            open_image(file)
        assert "x7f00" not in str(raised.value)
