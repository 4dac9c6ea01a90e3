"""Images that the golden data does not have: other modes, extreme shapes, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import phi_edge
from phi_edge import ImageError
from phi_edge.image import open_image

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
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(tmp_path)


def test_open_image_turns_it_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (20, 40)
