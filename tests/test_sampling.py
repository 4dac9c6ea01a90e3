"""Drawing a token gives what sorting the whole vocabulary gave, and every option its share."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.speed.sampling import draw_by_sorting
from phi_edge import GenerationOptions
from phi_edge.generation.options import OptionFields
from phi_edge.generation.sampling import Logits, Sampler, draw, log_probabilities

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
VOCAB_SIZE = 32_064


OPTIONS = [
    GenerationOptions(temperature=temperature, top_p=top_p, top_k=top_k)
    for temperature, top_p, top_k in itertools.product(
        (5e-324, 0.2, 0.8, 1.0, 2.0), (0.5, 0.9, 0.95, 0.999, 1.0), (None, None, 1, 40, 3000)
    )
]


def drawn_logits(rng: np.random.Generator, kind: int) -> Logits:
    """Peaked and flat distributions, with ties and without, and with tokens that may not come."""
    size = int(np.exp(rng.uniform(0, np.log(10_000))))
    scale = np.float32(rng.choice([1e-3, 0.3, 2, 6]))
    logits: Logits = rng.standard_normal(size, np.float32) * scale
    if kind == 1:
        logits = logits.astype(np.float16).astype(np.float32)
    elif kind == 2:
        logits = np.rint(logits)
    elif kind == 3:
        logits[:] = logits[0]
    elif kind == 4:
        logits[rng.random(size) < 0.9] = -np.inf
        logits[rng.integers(size)] = 1
    return logits


def test_draws_are_those_of_a_full_sort() -> None:
    """Of 10,000 distributions."""
    rng = np.random.default_rng(0)
    for trial in range(10_000):
        logits, number = drawn_logits(rng, trial % 5), rng.random()
        options = OPTIONS[rng.integers(len(OPTIONS))]
        token_id = draw(logits, number, options)
        assert token_id == draw_by_sorting(logits, number, options), (trial, options)


@pytest.mark.parametrize("scale", [0, 1e-3, 1, 3, 8])
@pytest.mark.parametrize("top_p", [0.5, 0.95, 1.0])
def test_draws_from_a_whole_vocabulary(scale: float, top_p: float) -> None:
    """Its nucleus has from one token to nearly all, and is more than what is looked at first."""
    rng = np.random.default_rng(1)
    options = GenerationOptions(temperature=0.8, top_p=top_p)
    for _ in range(20):
        logits = rng.standard_normal(VOCAB_SIZE, np.float32) * np.float32(scale)
        number = rng.random()
        assert draw(logits, number, options) == draw_by_sorting(logits, number, options)


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9, 1.0]),
)
def test_draws_at_the_very_edges(values: list[int], number: float, top_p: float) -> None:
    """Round numbers of equal probabilities, where a rounding decides."""
    logits = np.array(values, np.float32)
    options = GenerationOptions(temperature=1, top_p=top_p)
    assert draw(logits, number, options) == draw_by_sorting(logits, number, options)


def test_an_edge_within_rounding() -> None:
    """The nucleus ends at the very sum of the first tokens, far from the end of the vocabulary."""
    rng = np.random.default_rng(3)
    logits = rng.standard_normal(8000, np.float32) * 3
    weights = np.exp(np.sort(logits)[::-1].astype(np.float64) - logits.max())
    sums = (weights / weights.sum()).cumsum()
    for place in range(100):
        for top_p in (sums[place], np.nextafter(sums[place], 0), np.nextafter(sums[place], 1)):
            options, number = GenerationOptions(temperature=1, top_p=top_p), rng.random()
            assert draw(logits, number, options) == draw_by_sorting(logits, number, options)


def test_a_token_that_may_not_come_is_never_drawn() -> None:
    logits = np.array([0, -np.inf, 0, -np.inf], np.float32)
    almost_one = float(np.nextafter(1, 0))
    for options in OPTIONS:
        assert draw(logits, almost_one, options) in (0, 2)


def test_greedy() -> None:
    assert Sampler(GenerationOptions())(LOGITS) == 0
    assert Sampler(GenerationOptions(temperature=2, top_k=1))(LOGITS) == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 1}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 5e-324}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.685, 0.247, 0.062, 0.007]),
        ({"temperature": 1, "top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1, "top_p": 0.75}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1, "top_p": 0.85}, [0.526, 0.316, 0.158, 0]),
        ({"temperature": 1, "top_p": 0.01}, [1, 0, 0, 0]),
        ({"temperature": 1, "min_p": 0.25}, [0.526, 0.316, 0.158, 0]),
        ({"temperature": 1, "min_p": 0.59, "top_p": 0.9}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1, "min_p": 0.01, "top_p": 0.75}, [0.625, 0.375, 0, 0]),
        ({"temperature": 0.5, "min_p": 0.25}, [0.735, 0.265, 0, 0]),
        ({"temperature": 1, "min_p": 1}, [1, 0, 0, 0]),
    ],
)
def test_distributions(fields: OptionFields, expected: list[float]) -> None:
    sampler = Sampler(GenerationOptions(**fields).replace(seed=0))
    drawn = Counter(sampler(LOGITS) for _ in range(4000))
    frequencies = [drawn[token_id] / 4000 for token_id in range(len(LOGITS))]
    assert frequencies == pytest.approx(expected, abs=0.03)


def test_min_p_of_a_whole_vocabulary() -> None:
    """Far more tokens than are looked at first."""
    logits = np.zeros(VOCAB_SIZE, np.float32)
    logits[::2] = np.log(0.4)
    sampler = Sampler(GenerationOptions(temperature=1, min_p=0.5, seed=0))
    drawn = [sampler(logits) for _ in range(300)]
    assert all(token_id % 2 for token_id in drawn)
    assert max(drawn) > VOCAB_SIZE / 2


def test_seeds_repeat() -> None:
    def draws(seed: int | None, index: int = 0) -> list[int]:
        sampler = Sampler(GenerationOptions(temperature=1, seed=seed), index=index)
        return [sampler(LOGITS) for _ in range(50)]

    assert draws(1) == draws(1) != draws(2)
    assert draws(1, index=1) == draws(2), "each completion has a seed of its own"
    assert draws(-5) == draws(-5), "any integer is a seed"
    assert draws(2**100) != draws(2**100 % 2**63)
    assert draws(None) != draws(None)


def test_repetition_penalty() -> None:
    """Of Keskar et al.: what the prompt or the completion has, whatever the sign."""
    logits = np.array([2.0, 1.9, -1.0, -1.5, 0.5], np.float32)
    options = GenerationOptions(repetition_penalty=2)
    sampler = Sampler(options, prompt_ids=[0, -1, -1, 2])
    assert sampler(logits) == 1, "2.0 became 1.0"
    assert sampler(logits) == 0, "and then 1.9 became 0.95"
    only = Sampler(options, prompt_ids=[2])
    assert only(np.array([-9, -9, -1.0, -1.5, -9], np.float32)) == 3, "-1.0 became -2.0"
    below_one = Sampler(GenerationOptions(repetition_penalty=0.5), prompt_ids=[1])
    assert below_one(logits) == 1


def test_presence_and_frequency_penalties() -> None:
    logits = np.array([1.0, 0.75, 0.0], np.float32)
    presence = Sampler(GenerationOptions(presence_penalty=0.5), prompt_ids=[1])
    assert [presence(logits) for _ in range(4)] == [0, 1, 0, 0], "once, and of no prompt"
    frequency = Sampler(GenerationOptions(frequency_penalty=0.5))
    assert [frequency(logits) for _ in range(4)] == [0, 1, 0, 1], "each time"


def test_logits_stay_as_they_are() -> None:
    logits = LOGITS.copy()
    options = GenerationOptions(
        logit_bias={0: -9.0, 3: 2.5}, repetition_penalty=3, presence_penalty=1, temperature=0.7
    )
    sampler = Sampler(options, prompt_ids=[0, 1])
    for _ in range(5):
        sampler(logits)
    np.testing.assert_array_equal(logits, LOGITS)


@pytest.mark.parametrize("scale", [0, 0.1, 4, 60])
def test_log_probabilities(scale: float) -> None:
    rng = np.random.default_rng(2)
    logits = rng.standard_normal(VOCAB_SIZE, np.float32) * np.float32(scale)
    exact = logits.astype(np.float64)
    exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
    found = log_probabilities(logits, 7, 20)
    assert found.logprob == pytest.approx(exact[7], abs=1e-6)
    order = np.argsort(-logits, kind="stable")[:20].tolist()
    assert [token_id for token_id, _ in found.top] == order, "ties by their ids"
    assert [p for _, p in found.top] == pytest.approx(exact[order], abs=1e-6)


def test_more_log_probabilities_than_there_are_tokens() -> None:
    assert log_probabilities(LOGITS, 1, 0).top == ()
    assert [token_id for token_id, _ in log_probabilities(LOGITS, 1, 9).top] == [0, 1, 2, 3]
