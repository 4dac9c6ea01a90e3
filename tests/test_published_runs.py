"""Sequences on graphs of others: chunks, the change of RoPE factors, steps, batches, caches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import phi_edge
from phi_edge import Prompt, package
from phi_edge.engine.base import Features, Logits
from phi_edge.text.prompt import chat_text

from .conftest import count_cached
from .helpers.published import (
    BOUNDARY,
    CPU,
    GPU,
    OLD,
    WatchedPublishedEngine,
    copy_published,
    edit_graph,
    graph_file,
    large_package,
    model_on,
    multiply_in_floats,
    watched_engine,
    wide_image,
    with_slots,
)
from .helpers.sequences import EXACT, greedy_tokens, random_ids, start

# Their decoders differ; the fourth package has one of these.
NAMES = [CPU, GPU, OLD]

Open = Callable[[str], WatchedPublishedEngine]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The packages with decoders that do not round to 8 bits; see `multiply_in_floats`."""
    folder = tmp_path_factory.mktemp("exact")

    @functools.cache
    def copy(name: str) -> Path:
        copied = copy_published(name, folder / name)
        edit_graph(graph_file(copied, package.DECODER), multiply_in_floats)
        return copied

    return copy


@pytest.fixture(scope="module")
def engines(exact: Callable[[str], Path]) -> Open:
    """Engines of these; each is opened once."""
    return functools.cache(lambda name: watched_engine(exact(name)))


def no_features(engine: WatchedPublishedEngine) -> Features:
    return np.empty((0, engine.model.hidden_size), np.float32)


def prefill(engine: WatchedPublishedEngine, ids: npt.NDArray[np.int64]) -> Logits:
    return start(engine, ids, no_features(engine)).logits


def check_same(engine: WatchedPublishedEngine, found: Logits, expected: Logits) -> None:
    """Up to the last bits, of which logits in float16 have few."""
    tolerance = EXACT if engine.model.io_dtype == "float32" else 5e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 256])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_do_not_matter(
    engines: Open, monkeypatch: pytest.MonkeyPatch, name: str, chunk_size: int
) -> None:
    engine = engines(name)
    for length in (BOUNDARY, BOUNDARY + 1, 400):
        ids = random_ids(length)
        monkeypatch.setattr(engine, "chunk_size", 10_000)
        expected = prefill(engine, ids)
        monkeypatch.setattr(engine, "chunk_size", chunk_size)
        check_same(engine, prefill(engine, ids), expected)


def test_chunks_of_what_crosses_the_real_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is published, with activations in 8 bits. With wrong factors it is off by 5."""
    engine, ids = watched_engine(large_package()), random_ids(5000)
    found = prefill(engine, ids)
    assert engine.steps[:2] == [(1, 256), (1, 256)]
    monkeypatch.setattr(engine, "chunk_size", 10_000)
    np.testing.assert_allclose(found, prefill(engine, ids), rtol=0, atol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_stay_small(engines: Open, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The first one, too, of a prompt that passes the boundary."""
    engine = engines(name)
    monkeypatch.setattr(engine, "chunk_size", 50)
    engine.steps.clear()
    prefill(engine, random_ids(120))
    assert engine.steps == [(1, 50), (1, 50), (1, 20)]


@pytest.mark.parametrize("name", [CPU, OLD])
def test_chunks_where_no_mask_can_be_padded(
    engines: Open, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As elsewhere than on the CPU; the first one passes the boundary."""
    engine = engines(name)
    monkeypatch.setattr(engine, "_pads_mask", False)
    for length, first in ((BOUNDARY, 7), (BOUNDARY + 1, BOUNDARY + 1), (400, BOUNDARY + 1)):
        monkeypatch.setattr(engine, "chunk_size", 10_000)
        expected = prefill(engine, random_ids(length))
        monkeypatch.setattr(engine, "chunk_size", 7)
        engine.steps.clear()
        check_same(engine, prefill(engine, random_ids(length)), expected)
        assert engine.steps[0] == (1, first)


@pytest.mark.parametrize("pads_mask", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_going_on_from_the_beginning_of_a_long_sequence(
    engines: Open, monkeypatch: pytest.MonkeyPatch, name: str, *, pads_mask: bool
) -> None:
    """What is kept has the long factors, though it is short."""
    engine, ids = engines(name), random_ids(400)
    expected = prefill(engine, ids)
    monkeypatch.setattr(engine, "_pads_mask", pads_mask and engine._pads_mask)
    monkeypatch.setattr(engine, "chunk_size", 7)
    run = start(engine, np.append(ids[:20], random_ids(100, seed=1)), no_features(engine))
    run.rewind(20)
    engine.steps.clear()
    run.extend(ids[20:], no_features(engine))
    assert sum(num_tokens for _, num_tokens in engine.steps) == 380
    check_same(engine, run.logits, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_chunk_with_the_wrong_factors_would_be_seen(
    engines: Open, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """So the tests around this one tell right from wrong."""
    engine, ids = engines(name), random_ids(400)
    expected = prefill(engine, ids)
    for attribute in ("_pads_mask", "_looks_at_positions"):
        monkeypatch.setattr(engine, attribute, False)
    monkeypatch.setattr(engine, "chunk_end", lambda start, _: start + 7)
    assert np.abs(prefill(engine, ids) - expected).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_crossing_the_boundary_while_generating(engines: Open, name: str) -> None:
    engine, ids = engines(name), random_ids(BOUNDARY + 30)
    run = start(engine, ids[: BOUNDARY - 4], no_features(engine))
    for length in range(BOUNDARY - 3, len(ids) + 1):
        found = run.append(int(ids[length - 1]))
        if length in (BOUNDARY, BOUNDARY + 1, len(ids)):
            check_same(engine, found, prefill(engine, ids[:length]))


@pytest.mark.parametrize(("length", "kept"), [(60, 40), (90, 80), (90, 50)])
@pytest.mark.parametrize("name", NAMES)
def test_rewinding(engines: Open, name: str, length: int, kept: int) -> None:
    """Back over the boundary, too."""
    engine, ids = engines(name), random_ids(length)
    run = start(engine, ids, no_features(engine))
    run.rewind(kept)
    fresh = start(engine, ids[:kept], no_features(engine))
    check_same(engine, run.logits, fresh.logits)
    check_same(engine, run.append(5), fresh.append(5))


@pytest.mark.parametrize(("length", "room"), [(20, 44), (BOUNDARY - 3, 3), (BOUNDARY + 40, 256)])
@pytest.mark.parametrize("name", NAMES)
def test_several_tokens_in_a_step(engines: Open, name: str, length: int, room: int) -> None:
    engine, tokens = engines(name), random_ids(6, seed=1).tolist()[:room]
    run, plain = (start(engine, random_ids(length), no_features(engine)) for _ in range(2))
    assert run.room == room
    rows = run.append(tokens)
    check_same(engine, rows, np.stack([plain.append(token) for token in tokens]))
    run.rewind(length + 1)
    check_same(engine, run.append(tokens[1:]), rows[1:])


@pytest.mark.parametrize("length", [40, BOUNDARY + 40])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_single_sequences(engines: Open, name: str, length: int) -> None:
    engine, ids = engines(name), random_ids(length)
    batch = start(engine, ids, no_features(engine)).fork(3)
    assert batch
    singles = [start(engine, ids, no_features(engine)) for _ in range(3)]
    for tokens in ((5, 6, 7), (8, 9, 10)):
        rows = batch.append(tokens)
        expected = [run.append(token) for run, token in zip(singles, tokens, strict=True)]
        check_same(engine, rows, np.stack(expected))
    batch.keep([2, 0])
    expected = [singles[2].append(11), singles[0].append(12)]
    check_same(engine, batch.append((11, 12)), np.stack(expected))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_goes_over_the_borders_of_chunks(
    engines: Open, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    engine = engines(name)
    crops = wide_image(engine.model)
    prompt, features = with_slots([crops]), engine.encode_image(crops)
    monkeypatch.setattr(engine, "chunk_size", 10_000)
    expected = start(engine, prompt.input_ids, features).logits
    monkeypatch.setattr(engine, "chunk_size", 100)
    check_same(engine, start(engine, prompt.input_ids, features).logits, expected)


@pytest.mark.parametrize("name", NAMES)
def test_features_take_their_places(engines: Open, name: str) -> None:
    """Of two images, whatever number their slots have."""
    engine = engines(name)
    ids = np.array([[7, -1, -1, 8, -2, 9], [-1, -1, -1, 5, 6, 7]])
    dtype = engine.model.io_dtype
    features = np.random.default_rng(0).standard_normal((6, engine.model.hidden_size)).astype(dtype)
    found = engine.embed(ids, features, None).numpy()
    np.testing.assert_array_equal(found[ids < 0], features)
    plain = engine.embed(np.maximum(ids, 0), no_features(engine).astype(dtype), None).numpy()
    np.testing.assert_array_equal(found[ids >= 0], plain[ids >= 0])


# What is kept


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_kept_on_disk(exact: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """Keys and values as well as features, for another process."""
    with phi_edge.load_model(exact(name), provider="cpu", disk_cache=tmp_path) as first:
        prompts = [Prompt(random_ids(200)), with_slots([wide_image(first.manifest.model)])]
        expected = [greedy_tokens(first, prompt) for prompt in prompts]
    engine = watched_engine(exact(name))
    with model_on(engine, exact(name), tmp_path) as second:
        assert [greedy_tokens(second, prompt) for prompt in prompts] == expected
    assert (engine.num_begun, engine.num_encoded) == (0, 0)


def test_the_next_turn_prefills_only_itself(
    exact: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    turns = [("user", "What is the sea? " * 8)]
    later = [*turns, ("assistant", "Water."), ("user", "Why?")]
    models = [model_on(watched_engine(exact(CPU)), exact(CPU)) for _ in range(2)]
    with models[0] as model, models[1] as fresh:
        first, second = (model.encode_prompt(chat_text(each)) for each in (turns, later))
        assert first.num_tokens > BOUNDARY
        greedy_tokens(model, first)
        assert count_cached(model, second, caplog) >= first.num_tokens
        assert greedy_tokens(model, second) == greedy_tokens(fresh, second)


@pytest.mark.parametrize("name", NAMES)
def test_drafts_change_no_answer(exact: Callable[[str], Path], name: str) -> None:
    """Which crosses the boundary."""
    prompt, engine = Prompt(np.tile(random_ids(10), 5)), watched_engine(exact(name))
    answers, num_steps = [], []
    with model_on(engine, exact(name)) as model:
        for most in (0, 16):
            engine.steps.clear()
            events = model.generate(prompt, max_tokens=100, draft_tokens=most)
            answers.append([event.token_id for event in events])
            num_steps.append(len(engine.steps))
    assert answers[0] == answers[1]
    assert num_steps[1] < num_steps[0]
