"""How fast a package runs on this machine: measured once, kept, and used to predict.

Profiles are JSON files in the user's cache folder, or in the one that the environment variable
`PHI_EDGE_CACHE_DIR` names; each belongs to a package, a provider, a number of threads, a machine
and a version of ONNX Runtime.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from phi_edge.engine.session import import_onnxruntime
from phi_edge.errors import CalibrationError
from phi_edge.image.crops import count_tokens
from phi_edge.package import Package
from phi_edge.planning.crops import lower_crops
from phi_edge.planning.memory import count_crops


@dataclasses.dataclass(frozen=True)
class SpeedProfile:
    """How fast a package runs, in four numbers.

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

    def predict_ttft(self, num_tokens: int, total_crops: int = 0) -> float:
        """Predict the seconds to the first token, with nothing of the prompt cached.

        Args:
            num_tokens: Of the prompt, image slots included.
            total_crops: Of all images, the global ones included.
        """
        prefill = (
            self.seconds_per_token + self.seconds_per_token_squared * num_tokens
        ) * num_tokens
        return total_crops * self.seconds_per_crop + prefill


def most_crops(
    profile: SpeedProfile,
    images: Sequence[Image.Image],
    num_crops: Sequence[int],
    num_text_tokens: int,
    max_ttft_ms: float,
) -> int:
    """Find the most sub crops an image with which the first token comes in time; at least 1.

    Each image has a bound of its own, `num_crops`. The text has `num_text_tokens`.
    """

    def is_in_time(sizes: Sequence[tuple[int, int]]) -> bool:
        num_tokens = num_text_tokens + sum(map(count_tokens, sizes))
        ttft = profile.predict_ttft(num_tokens, sum(map(count_crops, sizes)))
        return 1000 * ttft <= max_ttft_ms

    return max(lower_crops([image.size for image in images], num_crops, is_in_time), default=1)


def save_profile(
    profile: SpeedProfile, manifest: Package, provider: str, num_threads: int | None
) -> Path:
    """Keep a profile, in the place of an older one.

    Raises:
        OSError: The file cannot be written.
    """
    key = _key(manifest, provider, num_threads)
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**key, **dataclasses.asdict(profile)}, indent=2)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(f"{text}\n")
    Path(file.name).replace(path)
    return path


def load_profile(manifest: Package, provider: str, num_threads: int | None) -> SpeedProfile:
    """Read the profile that was kept.

    Raises:
        CalibrationError: There is none for this package, provider, number of threads and machine,
            or its file is damaged.
    """
    path = _path(_key(manifest, provider, num_threads))
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        names = [field.name for field in dataclasses.fields(SpeedProfile)]
        return SpeedProfile(**{name: float(facts[name]) for name in names})
    except FileNotFoundError:
        raise CalibrationError(
            "how fast this package runs on this machine, with this provider and number of "
            "threads, was not measured yet: run `phi-edge calibrate`, with the same options, once"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CalibrationError(f"{path} cannot be read ({error}): calibrate again") from None


def _key(manifest: Package, provider: str, num_threads: int | None) -> dict[str, object]:
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
