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
from phi_edge.package import DECODER, VISION, ModelConfig, Package, PublishedPackage
from phi_edge.planning.crops import lower_crops
from phi_edge.text.prompt import Prompt

# Python, NumPy, tokenizers and ONNX Runtime.
_BASE_BYTES = 92_000_000
# Weights are packed anew for the kernels, with some padding; the file's pages are let go.
_BYTES_PER_WEIGHTS_BYTE = 1.07
# In blocks of 32, as others publish them, the scales stay beside the packed weights, to which a sum
# for each block is added; 1.4 after loading, 1.5 with what a prompt leaves. The embedding is looked
# up in the pages of its file. From `benchmarks.published_package`, with a photo of 4 crops.
_BYTES_PER_PUBLISHED_BYTE = 1.50
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

# The completions of one prompt that are decoded at once, and what their caches may take.
_MAX_BATCH_SIZE = 8
_BATCH_BYTES = 4 * 2**30

# Room that is left for a completion whose length nobody bounds, when images get their crops.
_COMPLETION_TOKENS = 256


def count_crops(image_size: tuple[int, int]) -> int:
    """Count the crops of a padded image, the global one included."""
    height, width = image_size
    return height * width // CROP_SIZE**2 + 1


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a request takes.

    Attributes:
        num_tokens: Of the prompt, image slots included, and of the completion.
        total_crops: Of all images, the global ones included.
        model_bytes: Memory of the process with the package loaded, ready for text.
        image_bytes: What images add for good: the vision tower, pixels and features.
        encoding_bytes: What encoding them adds, until the prompt is run.
        prompt_bytes: What the attention of prompts over an int8 cache adds.
        cache_bytes: What the keys and values of all tokens add. The cache's buffers are larger,
            but pages that were never written to take no memory.
    """

    num_tokens: int
    total_crops: int
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
    manifest: Package, num_tokens: int, image_sizes: Sequence[tuple[int, int]] = ()
) -> Needs:
    """Predict what a request takes on the CPU provider.

    The tokens are those of the prompt, image slots included, and of the completion. Image sizes are
    height and width of each padded image in pixels, as `ImageCrops` has them.
    """
    model = manifest.model
    vision_bytes = manifest.weights_bytes(VISION)
    min_crops = manifest.min_crops if isinstance(manifest, PublishedPackage) else 0
    crops = [max(count_crops(size), min_crops) for size in image_sizes]
    image_bytes = encoding_bytes = 0.0
    if crops:
        width = min(1.0, math.sqrt(vision_bytes / _CLIP_WEIGHTS_BYTES))
        image_bytes += _BYTES_PER_WEIGHTS_BYTE * vision_bytes
        # Images are encoded one by one, but their pixels are there at once.
        encoding_bytes = max(crops) * (_CROP_BYTES + width * _CROP_BYTES_BY_WIDTH)
        image_bytes += (sum(crops) - max(crops)) * _PIXEL_BYTES
        image_bytes += _FEATURE_COPIES * 4 * model.hidden_size * sum(map(count_tokens, image_sizes))
    return Needs(
        num_tokens,
        sum(crops),
        round(_BASE_BYTES + _text_bytes(manifest) + _BYTES_PER_HIDDEN_UNIT * model.hidden_size),
        round(image_bytes),
        round(encoding_bytes),
        num_tokens * _attention_bytes(model),
        num_tokens * model.cache_bytes_per_token,
    )


def _text_bytes(manifest: Package) -> float:
    """Predict what the weights of all graphs but the vision tower's take."""
    if isinstance(manifest, PublishedPackage):
        return _BYTES_PER_PUBLISHED_BYTE * manifest.weights_bytes(DECODER)
    roles = manifest.graph_files.keys() - {VISION}
    return _BYTES_PER_WEIGHTS_BYTE * sum(map(manifest.weights_bytes, roles))


def _attention_bytes(model: ModelConfig) -> int:
    """Predict what a token adds to the activations of a chunk, in one layer at a time."""
    if model.cache_dtype != "int8":
        return 0
    key_value_bytes = 2 * 4 * model.num_key_value_heads * model.head_size
    return round(_ARENA_SLACK * (model.num_attention_heads * _SCORE_BYTES + key_value_bytes))


def most_tokens(
    manifest: Package, max_ram_bytes: int, image_sizes: Sequence[tuple[int, int]] = ()
) -> int:
    """Find the most tokens of a sequence whose predicted peak is within `max_ram_bytes`."""
    empty = predict_needs(manifest, 0, image_sizes)
    if empty.peak_bytes > max_ram_bytes:
        return 0
    room = max_ram_bytes - empty.model_bytes - empty.image_bytes
    return room // predict_needs(manifest, 1).token_bytes


def check_needs(needs: Needs, max_ram_bytes: int) -> None:
    """Refuse what would take too much memory.

    Raises:
        MemoryLimitError: The predicted peak is above `max_ram_bytes`.
    """
    if needs.peak_bytes <= max_ram_bytes:
        return
    parts = f"{_megabytes(needs.model_bytes)} for the model"
    if needs.total_crops:
        image_bytes = needs.peak_bytes - needs.model_bytes - needs.token_bytes
        parts += f", {_megabytes(image_bytes)} for {needs.total_crops} crops of images"
    parts += f", {_megabytes(needs.token_bytes)} for {needs.num_tokens:,} tokens"
    raise MemoryLimitError(
        f"the request would take about {_megabytes(needs.peak_bytes)} of memory ({parts}), and "
        f"max_ram_mb allows {_megabytes(max_ram_bytes)}: use fewer crops, a shorter prompt or a "
        "lower max_tokens, or raise max_ram_mb"
    )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


class MemoryBudget:
    """Bounds the requests to a package, by what they are predicted to need.

    Attributes:
        model: What the package says of the model.
        max_ram_bytes: Most memory that the process may take; None for no limit.
    """

    def __init__(self, manifest: Package, max_ram_bytes: int | None = None) -> None:
        self.model = manifest.model
        self.max_ram_bytes = max_ram_bytes
        self._manifest = manifest

    def check(self, prompt: Prompt, max_tokens: int | None) -> None:
        """Refuse a prompt that would take too much memory.

        Raises:
            MemoryLimitError: The predicted peak is above the limit.
        """
        if self.max_ram_bytes is not None:
            num_tokens = prompt.num_tokens + (max_tokens or 1)
            check_needs(self._needs(prompt, num_tokens), self.max_ram_bytes)

    def fit_crops(
        self,
        sizes: Sequence[tuple[int, int]],
        num_crops: Sequence[int],
        can_be_fewer: Sequence[bool],
        num_text_tokens: int,
        max_tokens: int | None,
    ) -> list[int]:
        """Lower the most sub crops of images until a request fits, or none can be fewer.

        Args:
            sizes: Width and height of each image in pixels; the way round does not matter.
            num_crops: Most sub crops of each.
            can_be_fewer: Whether an image's number may be lowered.
            num_text_tokens: Of the prompt without these images.
            max_tokens: Of the completion.
        """
        limit = self.max_ram_bytes
        if limit is None:
            return list(num_crops)

        def fits(padded: Sequence[tuple[int, int]]) -> bool:
            num_tokens = num_text_tokens + sum(map(count_tokens, padded))
            num_tokens += max_tokens or _COMPLETION_TOKENS
            return predict_needs(self._manifest, num_tokens, padded).peak_bytes <= limit

        # An image has more tokens when it is higher than wide, and EXIF may turn it so later.
        tall = [(min(size), max(size)) for size in sizes]
        return lower_crops(tall, num_crops, fits, can_be_fewer)

    def max_length(self, prompt: Prompt, max_tokens: int | None) -> int:
        """Find the most tokens that a prompt and a completion of it can have together.

        With no `max_tokens`, a completion ends where the context does, or the memory.
        """
        longest = self.model.context_length
        if self.max_ram_bytes is not None:
            room = most_tokens(self._manifest, self.max_ram_bytes, prompt.image_sizes)
            longest = min(longest, room)
        if max_tokens is not None:
            longest = min(longest, prompt.num_tokens + max_tokens)
        return longest

    def batch_size(self, prompt: Prompt, max_tokens: int | None, n: int) -> int:
        """Choose how many of `n` completions of a prompt are decoded at once."""
        batch_size = min(n, _MAX_BATCH_SIZE)
        while batch_size > 1 and not self._has_room(prompt, max_tokens, batch_size):
            batch_size -= 1
        return batch_size

    def room(self, prompt: Prompt, max_tokens: int | None, batch_size: int) -> int | None:
        """Find what a request leaves to what is kept from earlier ones; None for no limit."""
        if self.max_ram_bytes is None:
            return None
        num_tokens = self._most_cached(prompt, max_tokens, batch_size)
        return max(0, self.max_ram_bytes - self._needs(prompt, num_tokens).peak_bytes)

    def _has_room(self, prompt: Prompt, max_tokens: int | None, batch_size: int) -> bool:
        num_tokens = self._most_cached(prompt, max_tokens, batch_size)
        if num_tokens * self.model.cache_bytes_per_token > _BATCH_BYTES:
            return False
        peak_bytes = self._needs(prompt, num_tokens).peak_bytes
        return self.max_ram_bytes is None or peak_bytes <= self.max_ram_bytes

    def _needs(self, prompt: Prompt, num_tokens: int) -> Needs:
        return predict_needs(self._manifest, num_tokens, prompt.image_sizes)

    def _most_cached(self, prompt: Prompt, max_tokens: int | None, batch_size: int) -> int:
        """Count the most tokens that are cached at a time, of all completions of a prompt."""
        longest = self.max_length(prompt, max_tokens)
        if batch_size == 1:
            return longest
        # A batch ends where the RoPE factors change.
        member = min(longest, self.model.rope_limit(prompt.num_tokens))
        return max(longest, prompt.num_tokens + batch_size * member)
