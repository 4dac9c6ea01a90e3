"""How fast a package runs on this machine: measured once, kept, and used to predict.

Calibrations are JSON files in the user's cache folder, or in the one that the environment variable
`PHI_EDGE_CACHE_DIR` names; each belongs to a package, a provider, a number of threads, a machine
and a version of ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from phi_edge.engine.session import import_onnxruntime
from phi_edge.errors import CalibrationError
from phi_edge.image.crops import CROP_SIZE, count_tokens, padded_size
from phi_edge.package import Manifest
from phi_edge.planning.memory import count_crops
from phi_edge.text.prompt import Prompt

if TYPE_CHECKING:
    from phi_edge.loaded_model import Model

# Two lengths tell the part of prefill that grows with the tokens from the one that grows with
# their square, which is attention.
_PREFILL_TOKENS = (256, 1280)
_NUM_DECODED = 16
_NUM_CROPS = 4


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        seconds_per_crop: To preprocess and encode a crop.
        seconds_per_token: Of prefill, the part that grows with the tokens.
        seconds_per_token_squared: The part that grows with their square.
        decode_tokens_per_second: After 1,280 tokens.
    """

    seconds_per_crop: float
    seconds_per_token: float
    seconds_per_token_squared: float
    decode_tokens_per_second: float

    def predict_ttft(self, num_tokens: int, num_crops: int = 0) -> float:
        """Seconds to the first token, with the package loaded and nothing of the prompt cached.

        Args:
            num_tokens: Of the prompt, image slots included.
            num_crops: Of all images, the global ones included.
        """
        prefill = (
            self.seconds_per_token + self.seconds_per_token_squared * num_tokens
        ) * num_tokens
        return num_crops * self.seconds_per_crop + prefill


def most_crops(
    calibration: Calibration,
    images: Sequence[Image.Image],
    num_crops: Sequence[int],
    num_text_tokens: int,
    max_ttft_ms: float,
) -> int:
    """The most sub crops an image with which the first token comes in time; at least 1.

    Args:
        calibration: Of the package on this machine.
        images: The images of the prompt.
        num_crops: Most sub crops that each may have anyway.
        num_text_tokens: Tokens of the prompt besides the images'.
        max_ttft_ms: Milliseconds to the first token.
    """
    for most in range(max(num_crops, default=1), 1, -1):
        sizes = [
            padded_size(*image.size, min(most, own))
            for image, own in zip(images, num_crops, strict=True)
        ]
        num_tokens = num_text_tokens + sum(map(count_tokens, sizes))
        ttft = calibration.predict_ttft(num_tokens, sum(map(count_crops, sizes)))
        if 1000 * ttft <= max_ttft_ms:
            return most
    return 1


def measure(model: Model) -> Calibration:
    """Measure a package that is loaded; for one of Phi-3.5-vision's size, it takes a minute or two.

    Nothing else should be running meanwhile.
    """
    rng = np.random.default_rng()
    with _stopwatch():  # the first image opens the vision graph
        model.encode_image(model.preprocess(noise_image(rng, CROP_SIZE), num_crops=1))
    with _stopwatch() as vision:
        crops = model.preprocess(noise_image(rng, 2 * CROP_SIZE), _NUM_CROPS)
        model.encode_image(crops)

    info = model.manifest.model
    short, long = _PREFILL_TOKENS
    ids = rng.integers(info.vocab_size, size=long)
    no_features = np.empty((0, info.hidden_size), np.float32)
    model.start(Prompt(ids[-short:]))
    with _stopwatch() as first:
        run = model.start(Prompt(ids[:short]))
    with _stopwatch() as rest:
        run.extend(ids[short:], no_features)
    with _stopwatch() as decode:
        for token_id in ids[:_NUM_DECODED]:
            run.append(int(token_id))

    pace, pace_of_all = first[0] / short, (first[0] + rest[0]) / long
    squared = max(0.0, (pace_of_all - pace) / (long - short))
    return Calibration(
        vision[0] / len(crops.pixel_values),
        pace_of_all - squared * long,
        squared,
        _NUM_DECODED / decode[0],
    )


@contextlib.contextmanager
def _stopwatch() -> Iterator[list[float]]:
    """A list that has the seconds which the block took."""
    seconds: list[float] = []
    start = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - start)


def noise_image(rng: np.random.Generator, side: int) -> Image.Image:
    """A square image like no other; one that was seen before would not be encoded again."""
    return Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8))


def save_calibration(
    calibration: Calibration, manifest: Manifest, provider: str, num_threads: int | None
) -> Path:
    """Keep a calibration, in the place of an older one.

    Raises:
        OSError: The file cannot be written.
    """
    key = _key(manifest, provider, num_threads)
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**key, **dataclasses.asdict(calibration)}, indent=2)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(f"{text}\n")
    Path(file.name).replace(path)
    return path


def load_calibration(manifest: Manifest, provider: str, num_threads: int | None) -> Calibration:
    """The calibration that was kept.

    Raises:
        CalibrationError: There is none for this package, provider, number of threads and machine,
            or its file is damaged.
    """
    path = _path(_key(manifest, provider, num_threads))
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        names = [field.name for field in dataclasses.fields(Calibration)]
        return Calibration(**{name: float(facts[name]) for name in names})
    except FileNotFoundError:
        raise CalibrationError(
            "how fast this package runs on this machine, with this provider and number of "
            "threads, was not measured yet: run `phi-edge calibrate`, with the same options, once"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CalibrationError(f"{path} cannot be read ({error}): calibrate again") from None


def _key(manifest: Manifest, provider: str, num_threads: int | None) -> dict[str, object]:
    return {
        "package": manifest.digest,
        "provider": provider,
        "num_threads": num_threads,
        "machine": platform.node(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "onnxruntime": import_onnxruntime().__version__,
    }


def _path(key: dict[str, object]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return _cache_folder() / "calibrations" / f"{digest[:32]}.json"


def _cache_folder() -> Path:
    if folder := os.environ.get("PHI_EDGE_CACHE_DIR"):
        return Path(folder)
    from platformdirs import user_cache_path

    return user_cache_path("phi_edge", appauthor=False)
