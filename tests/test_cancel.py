"""Work that is cancelled inside the run of a graph, and runs that fail."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

import phi_edge
from phi_edge import CancelToken, EngineError, GenerationCancelled, OutOfMemoryError, Prompt
from phi_edge.engine.kv_cache import KeyValueCache
from phi_edge.engine.ort import OrtEngine

from .conftest import count_cached
from .helpers.sequences import EXACT, greedy_tokens, random_ids
from .helpers.sessions import Intercepted, never_ending, once


def cancel_soon() -> tuple[CancelToken, threading.Timer]:
    """A token that another thread sets."""
    token = CancelToken()
    timer = threading.Timer(0.02, token.set)
    timer.start()
    return token, timer


def test_what_is_to_be_stopped_is_told_once_and_in_time() -> None:
    token, stopped = CancelToken(), []
    with token.stopping(lambda: stopped.append("over")):
        pass
    with (
        token.stopping(lambda: stopped.append("one")),
        token.stopping(lambda: stopped.append("two")),
    ):
        token.set()
    with token.stopping(lambda: stopped.append("late")):
        pass
    assert stopped == ["one", "two", "late"]


def test_onnxruntime_ends_a_run_that_is_under_way(
    fresh: phi_edge.Model, own_engine: OrtEngine
) -> None:
    """One chunk of 4,000 tokens, with nothing faked but the moment of cancelling."""
    engine, token = own_engine, CancelToken()
    engine.chunk_size = 10_000

    def cancel_within(_options: Any, run: Callable[[], Any]) -> Any:
        threading.Timer(0.02, token.set).start()
        return run()

    engine.decoder = Intercepted(engine.decoder, cancel_within)
    with pytest.raises(GenerationCancelled):
        fresh.start(Prompt(random_ids(4000)), token)


def test_a_cancelled_chunk_is_run_again(
    fresh: phi_edge.Model, own_engine: OrtEngine, model: phi_edge.Model
) -> None:
    """The chunks before it are kept; what it has written is not taken for valid."""
    engine, ids = own_engine, random_ids(400)
    engine.decoder = session = Intercepted(engine.decoder)
    run = fresh.start(Prompt(ids[:100]))
    token = CancelToken()

    def cancel_within(options: Any, run: Callable[[], Any]) -> None:
        threading.Timer(0.02, token.set).start()
        never_ending(options, run)

    session.intercept = once(cancel_within, num_before=1)
    no_features = np.empty((0, engine.model.hidden_size), np.float32)
    with pytest.raises(GenerationCancelled):
        run.extend(ids[100:], no_features, token)
    assert run.num_cached == 100 + engine.chunk_size
    run.extend(ids[:0], no_features)
    expected = model.start(Prompt(ids)).logits
    np.testing.assert_allclose(run.logits, expected, rtol=0, atol=EXACT)


def test_a_cancelled_turn_leaves_the_conversation(
    fresh: phi_edge.Model,
    own_engine: OrtEngine,
    model: phi_edge.Model,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, ids = own_engine, random_ids(400)
    engine.decoder = session = Intercepted(engine.decoder)
    assert greedy_tokens(fresh, Prompt(ids[:150]))
    session.intercept = once(never_ending)
    token, timer = cancel_soon()
    with pytest.raises(GenerationCancelled):
        fresh.start(Prompt(ids), token)
    timer.join()
    assert count_cached(fresh, Prompt(ids), caplog) == 150
    assert greedy_tokens(fresh, Prompt(ids)) == greedy_tokens(model, Prompt(ids))


def test_a_cancelled_prompt_goes_on_where_it_was(
    fresh: phi_edge.Model,
    own_engine: OrtEngine,
    model: phi_edge.Model,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The chunks that were whole are kept, of a first prompt too."""
    prompt, token = Prompt(random_ids(600)), CancelToken()

    def cancel_within(options: Any, run: Callable[[], Any]) -> None:
        token.set()
        never_ending(options, run)

    own_engine.decoder = Intercepted(own_engine.decoder, once(cancel_within, num_before=2))
    with pytest.raises(GenerationCancelled):
        fresh.start(prompt, token)
    assert count_cached(fresh, prompt, caplog) == 2 * own_engine.chunk_size
    assert greedy_tokens(fresh, prompt) == greedy_tokens(model, prompt)


def test_an_image_is_cancelled_and_encoded_again(
    fresh: phi_edge.Model, own_engine: OrtEngine, model: phi_edge.Model
) -> None:
    engine, crops = own_engine, model.preprocess(Image.new("RGB", (50, 90), "red"))
    engine.vision.session = Intercepted(engine.vision.session, once(never_ending))
    token, timer = cancel_soon()
    prompt = fresh.encode_prompt("<|image_1|>What is it?", [crops])
    with pytest.raises(GenerationCancelled):
        fresh.start(prompt, token)
    timer.join()
    np.testing.assert_array_equal(fresh.encode_image(crops), model.encode_image(crops))


def test_a_batch_is_cancelled(fresh: phi_edge.Model, own_engine: OrtEngine) -> None:
    engine = own_engine
    token = CancelToken()
    batch = fresh.start(Prompt(random_ids(20)), token).fork(2)
    assert batch is not None
    engine.decoder = Intercepted(engine.decoder, never_ending)
    batch.keep([0, 1])  # binds to the session anew
    timer = threading.Timer(0.02, token.set)
    timer.start()
    with pytest.raises(GenerationCancelled):
        batch.append([5, 6])
    timer.join()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("Non-zero status code"), EngineError),
        (RuntimeError("Status Message: std::bad_alloc"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
    ],
)
@pytest.mark.parametrize("num_before", [0, 1, 5])
def test_a_failed_run_leaves_nothing(
    fresh: phi_edge.Model,
    own_engine: OrtEngine,
    model: phi_edge.Model,
    num_before: int,
    error: Exception,
    expected: type[EngineError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In prefill or in decode: the next answer is right, and not from what was left."""
    engine, prompt = own_engine, Prompt(random_ids(200))

    def fail(_options: Any, run: Callable[[], Any]) -> None:
        run()
        raise error

    engine.decoder = Intercepted(engine.decoder, once(fail, num_before))
    with pytest.raises(expected):
        greedy_tokens(fresh, prompt)
    assert count_cached(fresh, prompt, caplog) == 0
    assert greedy_tokens(fresh, prompt) == greedy_tokens(model, prompt)


def test_memory_that_ends_while_a_cache_grows(
    fresh: phi_edge.Model, model: phi_edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some buffers are larger then; none of them is used, and the run can go on."""
    ids, num_buffers = random_ids(257), 0
    pages = mmap.mmap

    def end(*args: Any) -> Any:
        nonlocal num_buffers
        num_buffers += 1
        return refuse_memory() if num_buffers == 2 else pages(*args)

    run = fresh.start(Prompt(ids[:256]))
    with monkeypatch.context() as patch:
        patch.setattr("mmap.mmap", end)
        with pytest.raises(OutOfMemoryError):
            run.append(int(ids[256]))
    assert num_buffers == 2
    assert run.num_cached == 0
    expected = model.start(Prompt(ids)).logits
    np.testing.assert_allclose(run.logits, expected, rtol=0, atol=EXACT)


def refuse_memory(*_args: object) -> None:
    raise OSError(12, "Cannot allocate memory")


def test_a_cache_that_the_system_refuses(
    model: phi_edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = KeyValueCache(model.manifest.model, "cpu")
    monkeypatch.setattr("mmap.mmap", refuse_memory)
    with pytest.raises(OutOfMemoryError, match="key/value cache"):
        cache.reserve(1, 0)
