"""How fast a package is on this machine: the one stopwatch of `phi-edge bench` and `calibrate`.

Random tokens and pixels cost what real ones do, so no prompt is needed. The figures of one run
differ by up to a third from another's where other programs, or the temperature, have a say. What is
repeated gives its median.
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
from PIL import Image

from phi_edge.engine.base import Run
from phi_edge.image.crops import CROP_SIZE
from phi_edge.loaded_model import Model
from phi_edge.loading import load_model
from phi_edge.planning.speed import SpeedProfile
from phi_edge.text.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class TextSpeed:
    """Speed at one length of the prompt.

    Attributes:
        num_prompt_tokens: Tokens of the prompt.
        prefill_tokens_per_second: Median over the repetitions.
        decode_tokens_per_second: Of the median token, after the prompt.
    """

    num_prompt_tokens: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


@dataclasses.dataclass(frozen=True)
class Speed:
    """What `measure_speed` found.

    Attributes:
        load_seconds: From nothing to a model that is ready for text.
        seconds_per_crop: Median time to preprocess and encode a crop.
        text: One entry a prompt length.
        peak_rss_bytes: Most memory that the process had at a time; None where the system does not
            tell.
    """

    load_seconds: float
    seconds_per_crop: float
    text: tuple[TextSpeed, ...]
    peak_rss_bytes: int | None

    def profile(self) -> SpeedProfile:
        """Fit a profile to the first and the last prompt length, which have to differ.

        Two lengths tell the part of prefill that grows with the tokens from the one that grows
        with their square, which is attention.
        """
        short, long = self.text[0], self.text[-1]
        pace, long_pace = (1 / each.prefill_tokens_per_second for each in (short, long))
        squared = (long_pace - pace) / (long.num_prompt_tokens - short.num_prompt_tokens)
        squared = max(0.0, squared)
        return SpeedProfile(
            self.seconds_per_crop,
            long_pace - squared * long.num_prompt_tokens,
            squared,
            long.decode_tokens_per_second,
        )

    def facts(self) -> dict[str, Any]:
        """Give the figures for a reader, with their units."""
        facts: dict[str, Any] = {
            "load_seconds": f"{self.load_seconds:.2f}",
            "seconds_per_crop": f"{self.seconds_per_crop:.3f}",
        }
        for text in self.text:
            facts[f"{text.num_prompt_tokens:,} tokens"] = (
                f"prefill {text.prefill_tokens_per_second:,.1f} tokens per second, "
                f"then decode {text.decode_tokens_per_second:,.1f} tokens per second"
            )
        if self.peak_rss_bytes is not None:
            facts["peak_rss"] = f"{self.peak_rss_bytes / 1e9:.2f} GB"
        return facts


def measure_speed(
    path: Path | None,
    *,
    provider: str = "cpu",
    num_threads: int | None = None,
    prompt_lengths: Sequence[int] = (128, 512, 2048),
    num_completion_tokens: int = 32,
    repetitions: int = 3,
) -> Speed:
    """Load a package and measure it. Nothing else should be running meanwhile.

    The first three arguments are `load_model`'s. After each prompt `num_completion_tokens` are
    decoded. Everything but the loading is repeated.

    Raises:
        ValueError: A number is below 1.
        PackageError, ProviderError, EngineError: As in `load_model`.
        ContextLengthError: A prompt with its completion is longer than the model's context.
    """
    if min(*prompt_lengths, num_completion_tokens, repetitions) < 1:
        raise ValueError("prompt lengths, completion tokens and repetitions have to be at least 1")
    start = time.perf_counter()
    model = load_model(path, provider=provider, num_threads=num_threads)
    load_seconds = time.perf_counter() - start
    with model:
        _start(model, prompt_lengths[0])  # the first time takes longer
        text = tuple(
            _measure_text(model, length, num_completion_tokens, repetitions)
            for length in prompt_lengths
        )
        seconds_per_crop = _measure_vision(model, repetitions)
    return Speed(load_seconds, seconds_per_crop, text, peak_rss_bytes())


def _start(model: Model, num_tokens: int) -> tuple[Run, float]:
    """Prefill a sequence of random tokens, and tell the seconds that it took."""
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
    """Time a crop of an image of 2 x 2 crops, preprocessing included, in seconds."""
    times = []
    for seed in range(repetitions + 1):
        image = noise_image(np.random.default_rng(seed), 2 * CROP_SIZE)
        start = time.perf_counter()
        crops = model.preprocess(image, num_crops=4)
        model.encode_image(crops)
        times.append((time.perf_counter() - start) / len(crops.pixel_values))
    return statistics.median(times[1:])  # the first opens the graph


def noise_image(rng: np.random.Generator, side: int) -> Image.Image:
    """Make a square image like no other; one that was seen before would not be encoded again."""
    return Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8))


def peak_rss_bytes() -> int | None:
    """Most memory of this process at a time; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
