"""How much memory a request takes, known before any of the work is done.

The constants were measured on Linux with ONNX Runtime 1.32 and its CPU provider: the highest
resident size of processes that loaded an int4 package, ran prompts of 128 to 2,400 tokens (16,000
with phi-edge-tiny), and encoded images of 2 to 17 crops. The weights' share comes from a package
of Phi-3.5-vision's size with weights that are all different, since ONNX Runtime keeps equal ones
once. Predictions were from 1% below to 4% above what such packages took (an int8 cache, with and
without weights for prompts, text and 16 crops), and from 2% below to 13% above for phi-edge-tiny.
On a GPU, weights and cache are in the device's memory instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from phi_edge.engine.providers import PROVIDERS
from phi_edge.errors import MemoryLimitError
from phi_edge.image.crops import CROP_SIZE, count_tokens
from phi_edge.package import VISION, Manifest, ModelInfo, weights_file

# Python, NumPy, tokenizers and ONNX Runtime.
_BASE_BYTES = 92_000_000
# Weights are packed anew for the kernels, with some padding; the file's pages are let go.
_BYTES_PER_WEIGHTS_BYTE = 1.07
# Activations of a chunk of a prompt, by the width of the decoder.
_BYTES_PER_HIDDEN_UNIT = 20_000
# Over an int8 cache, a chunk takes its scores in each head for every token of the sequence, and the
# keys and values of these as floating-point numbers; ONNX Runtime's arena, which grows in steps,
# half as much again. This is an upper bound: in sequences of more than 8,192 tokens the cache is
# read as it is.
_SCORE_BYTES = PROVIDERS["cpu"].chunk_size * 4
_ARENA_SLACK = 1.5
# A crop's pixels and activations. The latter grow with the vision tower's width, which the
# manifest does not tell; as the weights grow with its square, their root stands for it.
_CROP_BYTES, _CROP_BYTES_BY_WIDTH = 3_500_000, 36_000_000
_CLIP_WEIGHTS_BYTES = 327_000_000  # CLIP ViT-L/14-336 in 8 bits
_PIXEL_BYTES = 3 * CROP_SIZE**2 * 4
# Features are kept for the next question, and by the run for a second prefill.
_FEATURE_COPIES = 2


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a request takes.

    Attributes:
        num_tokens: Of the prompt, image slots included, and of the completion.
        num_crops: Of all images, the global ones included.
        model_bytes: Memory of the process with the package loaded, ready for text.
        image_bytes: What images add for good: the vision tower, pixels and features.
        encoding_bytes: What encoding them adds, until the prompt is run.
        prompt_bytes: What the attention of prompts over an int8 cache adds.
        cache_bytes: What the keys and values of all tokens add. The cache's buffers are larger,
            but pages that were never written to take no memory.
    """

    num_tokens: int
    num_crops: int
    model_bytes: int
    image_bytes: int
    encoding_bytes: int
    prompt_bytes: int
    cache_bytes: int

    @property
    def token_bytes(self) -> int:
        """What the sequence adds."""
        return self.prompt_bytes + self.cache_bytes

    @property
    def peak_bytes(self) -> int:
        """The most memory of the process (resident set size), predicted."""
        return self.model_bytes + self.image_bytes + max(self.encoding_bytes, self.token_bytes)


def predict_needs(
    manifest: Manifest, num_tokens: int, image_sizes: Sequence[tuple[int, int]] = ()
) -> Needs:
    """What a request takes on the CPU provider.

    Args:
        manifest: The package's.
        num_tokens: Of the prompt, image slots included, and of the completion.
        image_sizes: Height and width of each padded image in pixels, as `ImageCrops` has it.
    """
    model = manifest.model
    sizes = {role: manifest.files[weights_file(role)].size for role in manifest.graphs}
    text_bytes = sum(sizes.values()) - sizes[VISION]
    crops = [count_crops(size) for size in image_sizes]
    image_bytes = encoding_bytes = 0.0
    if crops:
        width = min(1.0, math.sqrt(sizes[VISION] / _CLIP_WEIGHTS_BYTES))
        image_bytes += _BYTES_PER_WEIGHTS_BYTE * sizes[VISION]
        # Images are encoded one by one, but their pixels are there at once.
        encoding_bytes = max(crops) * (_CROP_BYTES + width * _CROP_BYTES_BY_WIDTH)
        image_bytes += (sum(crops) - max(crops)) * _PIXEL_BYTES
        image_bytes += _FEATURE_COPIES * 4 * model.hidden_size * sum(map(count_tokens, image_sizes))
    return Needs(
        num_tokens,
        sum(crops),
        round(
            _BASE_BYTES
            + _BYTES_PER_WEIGHTS_BYTE * text_bytes
            + _BYTES_PER_HIDDEN_UNIT * model.hidden_size
        ),
        round(image_bytes),
        round(encoding_bytes),
        num_tokens * _attention_bytes(model),
        num_tokens * model.cache_bytes_per_token,
    )


def _attention_bytes(model: ModelInfo) -> int:
    """What a token of the sequence adds to the activations of a chunk, in one layer at a time."""
    if model.cache_dtype != "int8":
        return 0
    key_value_bytes = 2 * 4 * model.num_key_value_heads * model.head_size
    return round(_ARENA_SLACK * (model.num_attention_heads * _SCORE_BYTES + key_value_bytes))


def most_tokens(
    manifest: Manifest, max_bytes: int, image_sizes: Sequence[tuple[int, int]] = ()
) -> int:
    """The most tokens of a sequence whose predicted peak is within `max_bytes`."""
    empty = predict_needs(manifest, 0, image_sizes)
    if empty.peak_bytes > max_bytes:
        return 0
    room = max_bytes - empty.model_bytes - empty.image_bytes
    return room // predict_needs(manifest, 1).token_bytes


def check_needs(needs: Needs, max_bytes: int) -> None:
    """Refuse what would take too much memory.

    Raises:
        MemoryLimitError: The predicted peak is above `max_bytes`.
    """
    if needs.peak_bytes <= max_bytes:
        return
    parts = f"{_megabytes(needs.model_bytes)} for the model"
    if needs.num_crops:
        image_bytes = needs.peak_bytes - needs.model_bytes - needs.token_bytes
        parts += f", {_megabytes(image_bytes)} for {needs.num_crops} crops of images"
    parts += f", {_megabytes(needs.token_bytes)} for {needs.num_tokens:,} tokens"
    raise MemoryLimitError(
        f"the request would take about {_megabytes(needs.peak_bytes)} of memory ({parts}), and "
        f"max_ram_mb allows {_megabytes(max_bytes)}: use fewer crops, a shorter prompt or a "
        "lower max_tokens, or raise max_ram_mb"
    )


def count_crops(image_size: tuple[int, int]) -> int:
    """Crops of a padded image, the global one included."""
    height, width = image_size
    return height * width // CROP_SIZE**2 + 1


def square_image_size(num_crops: int) -> tuple[int, int]:
    """Padded height and width of a square image at most `num_crops` sub crops, in pixels."""
    side = math.isqrt(num_crops) * CROP_SIZE
    return side, side


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
