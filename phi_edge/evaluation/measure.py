"""How fast a package is on this machine: `phi-edge bench`.

Random tokens and pixels cost what real ones do, so no prompt is needed. The figures of one run
differ by up to a third from another's where other programs, or the temperature, have a say: medians
are given.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phi_edge.engine.base import Run
from phi_edge.image.crops import CROP_SIZE
from phi_edge.loaded_model import Model
from phi_edge.loading import load_model
from phi_edge.planning.speed import noise_image
from phi_edge.text.prompt import Prompt

_NUM_WARM_UP_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class TextSpeed:
    """Speed at one length of the prompt.

    Attributes:
        num_prompt_tokens: Tokens of the prompt.
        prefill_tokens_per_s: Median over the repetitions.
        decode_tokens_per_s: Of the median token, after the prompt.
    """

    num_prompt_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclasses.dataclass(frozen=True)
class Speed:
    """What `measure_speed` found.

    Attributes:
        load_s: From nothing to a model that is ready for text.
        vision_s_per_crop: Median time to encode a crop.
        text: One entry a prompt length.
        peak_rss_bytes: Most memory that the process had at a time; None where the system does not
            tell.
    """

    load_s: float
    vision_s_per_crop: float
    text: tuple[TextSpeed, ...]
    peak_rss_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return dataclasses.asdict(self)


def measure_speed(
    path: Path | None,
    *,
    provider: str = "cpu",
    num_threads: int | None = None,
    prompt_lengths: Sequence[int] = (128, 512, 2048),
    num_completion_tokens: int = 32,
    repetitions: int = 3,
) -> Speed:
    """Load a package and measure it.

    Args:
        path: As in `load_model`, like the next two.
        provider: Where to run.
        num_threads: Threads of the CPU kernels.
        prompt_lengths: Tokens of the prompts, each at least 1.
        num_completion_tokens: Tokens to decode after each prompt, at least 1.
        repetitions: How often everything but the loading is repeated, at least 1.

    Raises:
        ValueError: A number is too small.
        PackageError, ProviderError, EngineError: As in `load_model`.
        ContextLengthError: A prompt with its completion is longer than the model's context.
    """
    if min(*prompt_lengths, num_completion_tokens, repetitions) < 1:
        raise ValueError("prompt lengths, completion tokens and repetitions have to be at least 1")
    start = time.perf_counter()
    model = load_model(path, provider=provider, num_threads=num_threads)
    load_s = time.perf_counter() - start
    with model:
        _start(model, _NUM_WARM_UP_TOKENS)
        text = tuple(
            _measure_text(model, length, num_completion_tokens, repetitions)
            for length in prompt_lengths
        )
        vision = _measure_vision(model, repetitions)
    return Speed(load_s, vision, text, peak_rss_bytes())


def _start(model: Model, num_tokens: int) -> tuple[Run, float]:
    """A sequence of random tokens, and the seconds that its prefill took."""
    ids = np.random.default_rng(num_tokens).integers(0, model.manifest.model.vocab_size, num_tokens)
    start = time.perf_counter()
    run = model.start(Prompt(ids))
    return run, time.perf_counter() - start


def _measure_text(
    model: Model, num_prompt_tokens: int, num_completion_tokens: int, repetitions: int
) -> TextSpeed:
    prefills, steps = [], []
    for _ in range(repetitions):
        run, seconds = _start(model, num_prompt_tokens)
        prefills.append(seconds)
        token_id = int(run.logits.argmax())
        for _ in range(num_completion_tokens):
            start = time.perf_counter()
            token_id = int(run.append(token_id).argmax())
            steps.append(time.perf_counter() - start)
    return TextSpeed(
        num_prompt_tokens,
        num_prompt_tokens / statistics.median(prefills),
        1 / statistics.median(steps),
    )


def _measure_vision(model: Model, repetitions: int) -> float:
    """Seconds a crop of an image of 2 x 2 crops; each time another, as features are kept."""
    times = []
    for seed in range(repetitions + 1):
        crops = model.preprocess(noise_image(np.random.default_rng(seed), 2 * CROP_SIZE), 4)
        start = time.perf_counter()
        model.encode_image(crops)
        times.append((time.perf_counter() - start) / len(crops.pixel_values))
    return statistics.median(times[1:])  # the first opens the graph


def peak_rss_bytes() -> int | None:
    """Most memory that was resident at a time in this process; None where there is no telling."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
