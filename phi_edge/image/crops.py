"""Image preprocessing: a Pillow image -> crops of pixels, equal to the reference processor.

The HD transform lays an image out on a grid of at most `num_crops` crops of 336 x 336 pixels,
pads the rest with white, and adds one global crop, the whole grid scaled down.

Source: the image processor that Microsoft publishes with Phi-3-vision and Phi-3.5-vision
(`Phi3VImageProcessor`), whose results are reproduced bit by bit up to normalisation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from phi_edge.errors import ImageError
from phi_edge.image.files import check_size, decoding

CROP_SIZE = 336

# `detail` of an image in the API -> most sub crops; `auto_crops` tells them for "auto".
DETAIL_CROPS = {"low": 1, "auto": None, "high": 16}
# Most sub crops that "auto" gives a prompt's only image, and each of several. Source: the model
# card of Phi-3.5-vision-instruct, which advises 16 for a single frame and 4 for several.
MOST_AUTO_CROPS, _MOST_OF_SEVERAL = 16, 4

# Tokens of one crop: 24 x 24 patches of 14 pixels, merged in squares of 2 x 2.
_TOKENS_PER_CROP_SIDE = 12
_TOKENS_PER_CROP = _TOKENS_PER_CROP_SIDE**2

# Bicubic coefficient of the global crop's resize (the usual choice, also PyTorch's).
_CUBIC_A = -0.75


@dataclasses.dataclass(frozen=True, eq=False)
class ImageCrops:
    """A preprocessed image.

    Attributes:
        pixel_values: float32 [1 + h * w, 3, 336, 336], normalised; the global crop, then the
            sub crops row by row.
        image_size: Height and width of the padded image in pixels, multiples of 336.
    """

    pixel_values: npt.NDArray[np.float32]
    image_size: tuple[int, int]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the size and all pixel values; images alike to the bit have the same."""
        sha256 = hashlib.sha256(repr((self.image_size, self.pixel_values.shape)).encode())
        sha256.update(np.ascontiguousarray(self.pixel_values).data)
        return sha256.digest()

    @property
    def num_tokens(self) -> int:
        """Tokens that the image takes in a prompt."""
        return count_tokens(self.image_size)


def count_tokens(image_size: tuple[int, int]) -> int:
    """Count the tokens of an image whose padded size is (height, width) in pixels."""
    height, width = (side // CROP_SIZE for side in image_size)
    crops = (height * width + 1) * _TOKENS_PER_CROP
    separators = 1 + (height + 1) * _TOKENS_PER_CROP_SIDE
    return crops + separators


def layout(width: int, height: int, num_crops: int) -> tuple[int, int]:
    """Find the width and height in pixels that an image is resized to.

    It is at least as wide as high, and is laid out on a grid of at most `num_crops` sub crops.

    Raises:
        ImageError: The image is so long and thin that nothing would be left of its height.
    """
    # In float division, as the reference does it: exact integers give other sizes.
    ratio = width / height
    scale = 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= num_crops:
        scale += 1
    new_width = scale * CROP_SIZE
    new_height = int(new_width / ratio)
    if new_height < 1:
        raise ImageError(
            f"an image of {width} x {height} pixels is too long and thin: at {num_crops} crops "
            "its short side would vanish. Cut it into parts, or allow more crops"
        )
    return new_width, new_height


def auto_crops(width: int, height: int, num_images: int) -> int:
    """Tell the most sub crops of an image that nobody chose them for.

    They are those of the smallest grid in which the image is not reduced, up to 16 for the only
    image of a prompt, and up to 4 for each of several.

    Args:
        width: Of the image in pixels; the way round does not matter.
        height: The same.
        num_images: Images of the prompt.
    """
    short, long = sorted((max(width, 1), max(height, 1)))
    scale = math.ceil(long / CROP_SIZE)
    # The ratio is a float, as in `layout`, so that the grids are the same.
    num_crops = scale * math.ceil(scale / (long / short))
    return min(num_crops, MOST_AUTO_CROPS if num_images == 1 else _MOST_OF_SEVERAL)


def padded_size(width: int, height: int, num_crops: int) -> tuple[int, int]:
    """Find the height and width in pixels of what `hd_image` makes of an image.

    Raises:
        ImageError: As in `layout`.
    """
    short, long = sorted((max(width, 1), max(height, 1)))
    new_long, new_short = layout(long, short, num_crops)
    new_short += -new_short % CROP_SIZE
    return (new_long, new_short) if width < height else (new_short, new_long)


def hd_image(image: Image.Image, num_crops: int) -> npt.NDArray[np.uint8]:
    """Resize an image and pad it with white to whole crops.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageError: The image cannot be decoded or laid out.
    """
    if num_crops < 1:
        raise ImageError(f"num_crops must be at least 1, not {num_crops}")
    check_size(image, "the image")
    with decoding("the image"):
        image = _to_8_bits(image).convert("RGB")

    is_portrait = image.width < image.height
    if is_portrait:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    width, height = layout(image.width, image.height, num_crops)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    missing = -height % CROP_SIZE
    above = missing // 2
    padded = np.pad(resized, ((above, missing - above), (0, 0), (0, 0)), constant_values=255)
    return padded.transpose(1, 0, 2) if is_portrait else padded


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey values to 0-255; other modes stay as they are.

    The reference differs: it leaves the conversion to Pillow, which cuts values off at 255, so
    that nearly the whole image becomes white. Mode "I" may hold any range, and is taken for 16
    bits where it has values above 255.
    """
    if not image.mode.startswith("I"):
        return image
    wide = image.convert("I")
    if image.mode == "I" and int(np.asarray(wide).max()) <= 255:
        return image
    # 65,535 / 255 = 257; the half rounds, since Pillow cuts fractions off.
    return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")


def preprocess(
    image: Image.Image,
    num_crops: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> ImageCrops:
    """Turn an image into the vision graph's input.

    Args:
        image: Any mode; transparency is dropped, not composited. 16-bit grey is scaled to 8 bits.
        num_crops: Most sub crops to use.
        mean: Per-channel mean (RGB) of values in 0-1.
        std: Per-channel standard deviation.

    Raises:
        ImageError: The image cannot be decoded or laid out.
    """
    pixels = hd_image(image, num_crops)
    height, width, _ = pixels.shape
    values = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    values -= np.array(mean, np.float32)[:, None, None]
    values /= np.array(std, np.float32)[:, None, None]

    rows, columns = height // CROP_SIZE, width // CROP_SIZE
    crops = np.empty((1 + rows * columns, 3, CROP_SIZE, CROP_SIZE), np.float32)
    crops[0] = _bicubic(_bicubic(values, axis=2), axis=1)
    grid = values.reshape(3, rows, CROP_SIZE, columns, CROP_SIZE)
    crops[1:] = grid.transpose(1, 3, 0, 2, 4).reshape(-1, 3, CROP_SIZE, CROP_SIZE)
    return ImageCrops(crops, (height, width))


def _bicubic(values: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """Resize one axis to 336 by bicubic interpolation, without antialiasing.

    Corners are not aligned and the edge is repeated: `torch.nn.functional.interpolate` with
    `mode="bicubic"`. Formula: Keys, "Cubic convolution interpolation for digital image
    processing" (1981).
    """
    size = values.shape[axis]
    if size == CROP_SIZE:
        return values
    centre = (np.arange(CROP_SIZE, dtype=np.float32) + np.float32(0.5)) * np.float32(
        size / CROP_SIZE
    ) - np.float32(0.5)
    first = np.floor(centre)
    t = centre - first
    a = _CUBIC_A
    result: npt.NDArray[np.float32] = np.zeros(1, np.float32)
    for tap in (-1, 0, 1, 2):
        distance = np.abs(t - tap)
        weight = np.where(
            distance <= 1,
            ((a + 2) * distance - (a + 3)) * distance**2 + 1,
            ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a,
        ).astype(np.float32)
        index = np.clip(first.astype(np.int64) + tap, 0, size - 1)
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        result = result + values.take(index, axis) * weight.reshape(shape)
    return result
