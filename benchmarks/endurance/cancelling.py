"""Measure how long work goes on after it was cancelled, in prefill and in the vision tower.

    python -m benchmarks.endurance.cancelling PACKAGE [--rounds 10]

Beside a `CancelToken` it cancels by a plain `threading.Event`, which is looked at between the runs
of graphs alone. Both are set at random moments of the work.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

import phi_edge
from phi_edge.evaluation.measure import noise_image
from phi_edge.image.crops import CROP_SIZE

_NUM_TOKENS = 512
_RNG = np.random.default_rng(0)


def main() -> None:
    """Print milliseconds from cancelling to the return, by kind of work and of cancelling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    with phi_edge.load_model(arguments.package, prefix_cache_bytes=0) as model:
        prompt = phi_edge.Prompt(_RNG.integers(3, model.manifest.model.vocab_size, _NUM_TOKENS))
        works: dict[str, Callable[[threading.Event], object]] = {
            f"prefill of {_NUM_TOKENS} tokens": lambda cancel: model.start(prompt, cancel),
            # Each time another: what is kept of an image is not computed again.
            "an image of 10 crops": lambda cancel: model.encode_image(
                model.preprocess(noise_image(_RNG, 3 * CROP_SIZE), num_crops=9), cancel
            ),
        }
        for name, work in works.items():
            seconds = _time(lambda work=work: work(threading.Event()))  # type: ignore[misc]
            print(f"{name}: {seconds:.2f} s")
            for kind in (threading.Event, phi_edge.CancelToken):
                late = [_measure(work, kind(), seconds) for _ in range(arguments.rounds)]
                print(f"  {kind.__name__}: median {np.median(late):.0f} ms, most {max(late):.0f}")


def _time(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _measure(
    work: Callable[[threading.Event], object], cancel: threading.Event, seconds: float
) -> float:
    """Cancel work at a random moment, and measure the milliseconds from then to its end."""
    moments: list[float] = []
    wait = float(_RNG.uniform(0.1, 0.8)) * seconds
    timer = threading.Timer(wait, _set, (cancel, moments))
    timer.start()
    with suppress(phi_edge.GenerationCancelled):
        work(cancel)
    end = time.monotonic()
    timer.join()
    return max(0.0, end - moments[0]) * 1000


def _set(cancel: threading.Event, moments: list[float]) -> None:
    moments.append(time.monotonic())
    cancel.set()


if __name__ == "__main__":
    main()
