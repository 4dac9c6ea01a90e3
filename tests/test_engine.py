"""Runs: chunks, rewinding, the 4,096 crossing, limits, cancelling."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest

import phi_edge
from export import Checkpoint, export_package
from phi_edge import ContextLengthError, GenerationCancelled, Prompt, PromptError
from phi_edge.engine.kv_cache import KeyValueCache
from phi_edge.engine.ort import OrtEngine
from quantize import make_recipe

from .conftest import GoldenSet
from .helpers.sequences import EXACT, random_ids, start


def test_append_equals_prefill(model: phi_edge.Model) -> None:
    ids = random_ids(300)
    run = model.start(Prompt(ids[:250]))
    for token_id in ids[250:]:
        logits = run.append(int(token_id))
    whole = model.start(Prompt(ids))
    assert run.num_tokens == whole.num_tokens == 300
    np.testing.assert_allclose(logits, whole.logits, rtol=0, atol=EXACT)


@pytest.mark.parametrize("chunk_size", [1, 7, 128, 10_000])
def test_chunks_do_not_matter(compact_fp32: Path, chunk_size: int) -> None:
    """Least of all past 4,096, where every chunk needs the long factors."""
    manifest = phi_edge.load_model(compact_fp32).manifest
    engine = OrtEngine(compact_fp32, manifest, "cpu")
    no_features = np.empty((0, manifest.model.hidden_size), np.float32)
    ids = random_ids(200 if chunk_size < 128 else 4500)
    expected = start(engine, ids, no_features).logits
    engine.chunk_size = chunk_size
    np.testing.assert_allclose(start(engine, ids, no_features).logits, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("length", "kept"), [(300, 120), (4110, 4100), (4110, 2000)])
def test_rewind(model: phi_edge.Model, length: int, kept: int) -> None:
    """A rewound run is as good as one that never went further, back over 4,096 too."""
    ids = random_ids(length)
    run = model.start(Prompt(ids))
    run.rewind(kept)
    fresh = model.start(Prompt(ids[:kept]))
    assert run.num_tokens == kept
    np.testing.assert_allclose(run.logits, fresh.logits, rtol=0, atol=EXACT)
    np.testing.assert_allclose(run.append(5), fresh.append(5), rtol=0, atol=EXACT)


def test_rewind_keeps_images(compact: GoldenSet, model: phi_edge.Model) -> None:
    prompt = model.encode_prompt(
        "<|image_1|>What is it?", [compact.image("wide_90x60")], num_crops=1
    )
    run = model.start(prompt)
    expected = run.logits
    run.append(7)
    run.rewind(prompt.num_tokens)
    np.testing.assert_allclose(run.logits, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("kept", [0, 11, -1])
def test_rewind_out_of_range(model: phi_edge.Model, kept: int) -> None:
    with pytest.raises(ValueError, match="cannot rewind"):
        model.start(Prompt(random_ids(10))).rewind(kept)


def test_two_runs_do_not_disturb_each_other(model: phi_edge.Model) -> None:
    first = model.start(Prompt(random_ids(20, seed=1)))
    expected = first.logits
    model.start(Prompt(random_ids(30, seed=2))).append(9)
    np.testing.assert_array_equal(first.logits, expected)


def test_cache_doubles_and_keeps_its_tokens(model: phi_edge.Model) -> None:
    info = dataclasses.replace(model.manifest.model, context_length=1500)
    cache = KeyValueCache(info, "cpu")
    assert cache.reserve(10, 0)
    assert cache.capacity == 256
    assert not cache.reserve(256, 10)
    assert cache.reserve(257, 256)
    assert cache.capacity == 512
    assert cache.reserve(1500, 512)
    assert cache.capacity == 1500, "never more than the context"


def test_context_end(checkpoint_copy: Path, tmp_path: Path) -> None:
    """The context can be filled to its last token, far past 4,096; one more is the error."""
    config = json.loads((checkpoint_copy / "config.json").read_text())
    config["max_position_embeddings"] = 9000
    (checkpoint_copy / "config.json").write_text(json.dumps(config))
    export_package(Checkpoint(checkpoint_copy), tmp_path / "out", make_recipe("fp32", "cpu"))
    with phi_edge.load_model(tmp_path / "out") as model:
        run = model.start(Prompt(random_ids(8998)))
        with pytest.raises(ContextLengthError, match=r"9,002 .* 9,000"):
            run.append([5, 6, 7, 8])
        assert (run.num_tokens, run.room) == (8998, 2)
        assert run.append([5, 6]).shape == (2, model.manifest.model.vocab_size)
        assert run.room == 0
        run.rewind(8998)
        run.append(5)
        logits = run.append(6)
        assert np.isfinite(logits).all()
        with pytest.raises(ContextLengthError, match=r"9,001 .* 9,000") as caught:
            run.append(7)
        assert (caught.value.num_tokens, caught.value.context_length) == (9001, 9000)
        assert run.num_tokens == 9000, "nothing is lost"
        with pytest.raises(ContextLengthError):
            model.start(Prompt(random_ids(9001)))
        events = list(model.generate(Prompt(random_ids(8999))))
        assert len(events) <= 2
        assert events[-1].finish_reason in ("length", "stop")


def test_cancel_before_and_between_tokens(model: phi_edge.Model) -> None:
    cancel = threading.Event()
    events = model.generate(Prompt(random_ids(10)), cancel=cancel)
    next(events)
    cancel.set()
    with pytest.raises(GenerationCancelled):
        next(events)
    with pytest.raises(GenerationCancelled):
        model.start(Prompt(random_ids(10)), cancel)


def test_cancel_between_chunks(compact_fp32: Path) -> None:
    """The prefill stops at the next chunk, not at its end."""
    manifest = phi_edge.load_model(compact_fp32).manifest
    engine = OrtEngine(compact_fp32, manifest, "cpu")
    engine.chunk_size = 1
    cancel = threading.Event()
    chunks = []

    class CountingEmbedding:
        def run_with_ort_values(self, *args: object) -> object:
            chunks.append(1)
            if len(chunks) == 3:
                cancel.set()
            return embedding.run_with_ort_values(*args)

    embedding, engine.embedding = engine.embedding, CountingEmbedding()
    no_features = np.empty((0, manifest.model.hidden_size), np.float32)
    with pytest.raises(GenerationCancelled):
        start(engine, random_ids(100), no_features, cancel)
    assert len(chunks) == 3


def test_cancel_at_the_crossing(model: phi_edge.Model) -> None:
    """The token that passes 4,096 starts a long prefill, which can be cancelled too."""
    cancel = threading.Event()
    run = model.start(Prompt(random_ids(4096)), cancel)
    cancel.set()
    with pytest.raises(GenerationCancelled):
        run.append(5)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no tokens"),
        ([1, 512], "outside the vocabulary"),
        ([1, -1, -1], "2 image slots and the images give 0 features"),
    ],
)
def test_bad_prompts(model: phi_edge.Model, ids: list[int], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        model.start(Prompt(np.array(ids, np.int64)))


def test_a_step_takes_what_it_has_room_for_and_no_more(
    compact_fp32: Path, model: phi_edge.Model
) -> None:
    """Nothing is dropped silently."""
    engine = OrtEngine(compact_fp32, model.manifest, "cpu")
    engine.chunk_size = 4
    run = start(engine, random_ids(20), np.empty((0, 64), np.float32))
    assert run.room == 4
    with pytest.raises(ValueError, match="1 to 4 tokens here, not 5"):
        run.append([5, 6, 7, 8, 9])
    with pytest.raises(ValueError, match="not 0"):
        run.append([])
    assert run.num_tokens == 20
    assert run.append([5, 6, 7, 8]).shape == (4, 512)
    run.rewind(22)
    assert run.room == 4


def test_a_step_does_not_cross_the_change_of_rope_factors(model: phi_edge.Model) -> None:
    run = model.start(Prompt(random_ids(4093)))
    assert run.room == 3
    with pytest.raises(ValueError, match="1 to 3 tokens"):
        run.append([5, 6, 7, 8])
    run.append([5, 6, 7])
    assert run.room == 1, "it costs a prefill of the whole sequence"
    run.append(8)
    assert run.room > 3


@pytest.mark.parametrize("token_id", [-1, 512])
def test_append_checks_the_token(model: phi_edge.Model, token_id: int) -> None:
    run = model.start(Prompt(random_ids(3)))
    with pytest.raises(PromptError, match="outside the vocabulary"):
        run.append(token_id)
    assert run.num_tokens == 3
