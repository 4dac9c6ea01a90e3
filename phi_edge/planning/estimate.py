"""What a request would take: tokens, memory and time, for people to read."""

from __future__ import annotations

from typing import Any

from phi_edge.errors import CalibrationError, ContextLengthError
from phi_edge.image.crops import DETAIL_CROPS, count_tokens
from phi_edge.package import Manifest
from phi_edge.planning.memory import predict_needs, square_image_size
from phi_edge.planning.speed import load_profile


def estimate(
    manifest: Manifest,
    prompt_tokens: int,
    *,
    num_images: int = 0,
    detail: str | None = None,
    num_crops: int | None = None,
    max_tokens: int = 256,
    provider: str = "cpu",
    num_threads: int | None = None,
) -> dict[str, Any]:
    """Predict what a request takes: names and values.

    The text has `prompt_tokens`. The images are square, and cut as `detail` says in the API, or
    into `num_crops` sub crops.

    Raises:
        ValueError: A detail and a number of crops are given.
        ContextLengthError: The request does not fit the model's context.
    """
    if detail is not None and num_crops is not None:
        raise ValueError("give a detail or a number of crops, not both")
    model = manifest.model
    most_crops = num_crops or DETAIL_CROPS[detail or "auto"] or model.num_crops
    sizes = [square_image_size(most_crops)] * num_images
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
