"""What a request would take: tokens, memory and time, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from phi_edge.errors import CalibrationError, ContextLengthError
from phi_edge.image.crops import (
    CROP_SIZE,
    DETAIL_CROPS,
    MOST_AUTO_CROPS,
    auto_crops,
    count_tokens,
    padded_size,
)
from phi_edge.package import Package
from phi_edge.planning.memory import predict_needs
from phi_edge.planning.speed import load_profile

# Width and height of an image that gets the most crops.
_LARGE = (MOST_AUTO_CROPS * CROP_SIZE, MOST_AUTO_CROPS * CROP_SIZE)


def estimate(
    manifest: Package,
    prompt_tokens: int,
    *,
    num_images: int = 0,
    image_sizes: Sequence[tuple[int, int]] = (),
    detail: str | None = None,
    num_crops: int | None = None,
    max_tokens: int = 256,
    provider: str = "cpu",
    num_threads: int | None = None,
) -> dict[str, Any]:
    """Predict what a request takes: names and values.

    The text has `prompt_tokens`. The images have `image_sizes`, width and height in pixels, or
    there are `num_images` square ones, as large as any. They are cut as `detail` says in the API,
    or into `num_crops` sub crops.

    Raises:
        ValueError: A detail and a number of crops are given, or sizes and a number of images.
        ImageError: As in `layout`.
        ContextLengthError: The request does not fit the model's context.
    """
    if detail is not None and num_crops is not None:
        raise ValueError("give a detail or a number of crops, not both")
    if num_images and image_sizes:
        raise ValueError("give the image files or a number of images, not both")
    model = manifest.model
    given = num_crops or DETAIL_CROPS[detail or "auto"]
    images = image_sizes or [_LARGE] * num_images
    sizes = [padded_size(*size, given or auto_crops(*size, len(images))) for size in images]
    num_prompt_tokens = prompt_tokens + sum(map(count_tokens, sizes))
    num_tokens = num_prompt_tokens + max_tokens
    if num_tokens > model.context_length:
        raise ContextLengthError(num_tokens, model.context_length)
    needs = predict_needs(manifest, num_tokens, sizes)
    facts: dict[str, Any] = {
        "prompt_tokens": num_prompt_tokens,
        "tokens": num_tokens,
        "crops": needs.total_crops,
        "cache_bytes": needs.cache_bytes,
        "peak_bytes": needs.peak_bytes,
    }
    try:
        profile = load_profile(manifest, provider, num_threads)
    except CalibrationError as error:
        return {**facts, "note": f"no prediction of time: {error}"}
    prefill_seconds = profile.predict_ttft(num_prompt_tokens)
    seconds = profile.predict_ttft(num_prompt_tokens, needs.total_crops)
    return {
        **facts,
        "seconds_per_crop": round(profile.seconds_per_crop, 3),
        "prefill_tokens_per_second": round(num_prompt_tokens / prefill_seconds, 1),
        "decode_tokens_per_second": round(profile.decode_tokens_per_second, 1),
        "time_to_first_token_seconds": round(seconds, 2),
    }
