"""Measure how long each way to choose a token takes, beside sorting the whole vocabulary.

    python -m benchmarks.speed.sampling [--vocab-size 32064] [--rounds 20]

Logits are normally distributed; the larger their standard deviation, the fewer tokens are likely.
In language models, mostly fewer are likely than with 3. Each figure is the median over rounds, both
sides by turns in each.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np

from benchmarks.timing import Work, median_ms
from phi_edge import GenerationOptions
from phi_edge.generation.options import OptionFields
from phi_edge.generation.sampling import Logits, Sampler, log_probabilities

_NUM_TOP = 20
_CALLS_A_TURN = 20
_SCALES = (1, 3, 5)
_WAYS: dict[str, OptionFields] = {
    "temperature": {},
    "top_p": {"top_p": 0.95},
    "top_k": {"top_k": 40},
    "min_p": {"min_p": 0.05},
    "top_p, top_k, min_p": {"top_p": 0.95, "top_k": 40, "min_p": 0.05},
}


def draw_by_sorting(logits: Logits, number: float, options: GenerationOptions) -> int:
    """Draw as `phi_edge.generation.sampling.draw` does, without min_p, by sorting everything."""
    order = np.argsort(-logits, kind="stable")[: options.top_k]
    below = logits[order].astype(np.float64) - logits[order[0]]
    with np.errstate(over="ignore"):
        probabilities = np.exp(below / options.temperature)
    probabilities /= probabilities.sum()
    cumulative = probabilities.cumsum()
    if options.top_p < 1:
        cumulative = cumulative[: int(np.searchsorted(cumulative, options.top_p)) + 1]
    drawn = number * cumulative[-1]
    return int(order[np.searchsorted(cumulative, drawn, side="right")])


def log_by_sorting(logits: Logits) -> list[float]:
    """Compute log probabilities of the most likely tokens by sorting everything."""
    exact = logits.astype(np.float64)
    normaliser = exact.max() + np.log(np.exp(exact - exact.max()).sum())
    top = np.argsort(-logits, kind="stable")[:_NUM_TOP]
    return [float(exact[token_id] - normaliser) for token_id in top]


def make_works(logits: Logits) -> dict[str, tuple[Work, Work]]:
    """Make what is measured for each way, and the same by sorting."""
    rng = np.random.default_rng(0)
    works: dict[str, tuple[Work, Work]] = {}
    for name, fields in _WAYS.items():
        options = GenerationOptions(**fields).replace(temperature=0.8)
        works[name] = (
            partial(Sampler(options), logits),
            partial(draw_by_sorting, logits, rng.random(), options),
        )
    *_, all_of_them = works.values()
    log = partial(log_probabilities, logits, 7, _NUM_TOP), partial(log_by_sorting, logits)
    works[f"log probabilities, {_NUM_TOP} most likely"] = log
    works["all together"] = _both(all_of_them[0], log[0]), _both(all_of_them[1], log[1])
    return works


def _both(first: Work, second: Work) -> Work:
    return lambda: (first(), second())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocab-size", type=int, default=32_064)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    for scale in _SCALES:
        print(f"standard deviation {scale}")
        logits = rng.standard_normal(arguments.vocab_size, np.float32) * np.float32(scale)
        for name, works in make_works(logits).items():
            ours, sorting = median_ms(works, arguments.rounds, calls=_CALLS_A_TURN)
            print(f"  {name}: {ours:.3f} ms, by sorting {sorting:.3f} ms ({sorting / ours:.1f}x)")


if __name__ == "__main__":
    main()
