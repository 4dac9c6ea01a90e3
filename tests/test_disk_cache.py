"""What is kept on disk answers a new process at once, changes no answer, and is never trusted."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

import phi_edge
from phi_edge.cache.disk import DiskCache
from phi_edge.cache.file import TEMPORARY_PREFIX, CacheFile, DamagedFileError, write_cache_file
from phi_edge.engine.base import Features
from phi_edge.engine.ort import OrtEngine
from phi_edge.text.prompt import chat_text

from .conftest import GoldenSet
from .helpers.engines import WatchedEngine
from .helpers.sequences import greedy_tokens, random_ids, start

Question = Callable[..., phi_edge.Prompt]


@pytest.fixture
def question(compact: GoldenSet) -> Question:
    """Makes prompts about one image, of which each crop is a third of the slots."""

    def make(model: phi_edge.Model, text: str, image: str = "wide_90x60") -> phi_edge.Prompt:
        turns = [("user", f"<|image_1|>\n{text}")]
        return model.encode_prompt(chat_text(turns), [compact.image(image)], num_crops=1)

    return make


@pytest.fixture
def first(compact_fp32: Path, tmp_path: Path, question: Question) -> Iterator[phi_edge.Model]:
    """A model that has answered a question about an image."""
    with phi_edge.load_model(compact_fp32, disk_cache=tmp_path / "cache") as model:
        greedy_tokens(model, question(model, "What is it?"))
        yield model


@pytest.fixture
def disk(first: phi_edge.Model, tmp_path: Path) -> DiskCache:
    """The same folder, as another process sees it."""
    return DiskCache(tmp_path / "cache", first.manifest, "cpu")


@pytest.fixture
def second(
    first: phi_edge.Model, own_engine: OrtEngine, disk: DiskCache
) -> Iterator[phi_edge.Model]:
    """Another model with the same folder, and nothing in memory."""
    arguments = first.manifest, first.tokenizer, own_engine
    with phi_edge.Model(*arguments, disk_cache=disk) as model:
        yield model


def files(tmp_path: Path, suffix: str = "") -> list[Path]:
    return [path for path in sorted((tmp_path / "cache").iterdir()) if path.name.endswith(suffix)]


def features_of(engine: OrtEngine, prompt: phi_edge.Prompt) -> Features:
    """Those of a prompt's one image."""
    return engine.encode_image(prompt.images[0])


def test_a_document_is_reopened_without_encoding_or_prefilling_it(
    second: phi_edge.Model,
    own_engine: WatchedEngine,
    engine: OrtEngine,
    model: phi_edge.Model,
    question: Question,
) -> None:
    prompt = question(second, "How many are there?")
    with second.start(prompt) as run:
        assert (own_engine.num_encoded, own_engine.num_begun) == (0, 0)
        fresh = start(engine, prompt.input_ids, features_of(engine, prompt))
        np.testing.assert_array_equal(run.input_ids, fresh.input_ids)
        np.testing.assert_allclose(run.logits, fresh.logits, rtol=0, atol=2e-5)
    assert greedy_tokens(second, prompt) == greedy_tokens(model, prompt)


def test_another_image_is_not_answered_from_it(
    second: phi_edge.Model, own_engine: WatchedEngine, compact: GoldenSet
) -> None:
    pixels = np.array(compact.image("wide_90x60").convert("RGB"))
    pixels[0, 0, 0] ^= 128
    text = chat_text([("user", "<|image_1|>\nWhat is it?")])
    second.start(second.encode_prompt(text, [Image.fromarray(pixels)], num_crops=1))
    assert (own_engine.num_encoded, own_engine.num_begun) == (1, 1)


@pytest.mark.parametrize("place", [3, 9, 30, 60, -5000, -5])
def test_a_damaged_file_is_removed_and_is_a_miss(
    second: phi_edge.Model,
    engine: OrtEngine,
    question: Question,
    tmp_path: Path,
    place: int,
) -> None:
    """In the magic, the header's length and digest, the header, the arrays and their digest."""
    for path in files(tmp_path):
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
    prompt = question(second, "What is it?")
    with second.start(prompt) as run:
        assert files(tmp_path, ".run") == []
        fresh = start(engine, prompt.input_ids, features_of(engine, prompt))
        np.testing.assert_allclose(run.logits, fresh.logits, rtol=0, atol=2e-5)
    assert len(files(tmp_path, ".run")) == 1


@pytest.mark.parametrize("num_bytes", [0, 5, 40, 200, -1])
def test_a_file_that_ends_too_early_is_damaged(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "file"
    write_cache_file(path, {"kind": "a test"}, [np.arange(6), np.arange(6)])
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(DamagedFileError):
        CacheFile(path)


def test_a_file_in_the_place_of_another_is_a_miss(
    second: phi_edge.Model,
    disk: DiskCache,
    question: Question,
    tmp_path: Path,
    compact: GoldenSet,
) -> None:
    (features,) = files(tmp_path, ".features")
    text = chat_text([("user", "<|image_1|>\n")])
    other = second.encode_prompt(text, [compact.image("tall_50x170")], num_crops=1)
    disk.save_features(other.images[0], second.encode_image(other.images[0]))
    (of_other,) = set(files(tmp_path, ".features")) - {features}
    features.replace(of_other)
    assert disk.load_features(other.images[0]) is None
    assert disk.load_features(question(second, "").images[0]) is None


def test_files_are_bound_to_package_and_provider(
    disk: DiskCache,
    model: phi_edge.Model,
    engine: OrtEngine,
    question: Question,
    tmp_path: Path,
) -> None:
    prompt = question(model, "What is it?")
    features = features_of(engine, prompt)
    assert disk.load_features(prompt.images[0]) is not None
    assert disk.load_run(prompt, features, engine) is not None
    for other in (
        DiskCache(tmp_path / "cache", model.manifest, "cuda"),
        DiskCache(tmp_path / "cache", phi_edge.load_model().manifest, "cpu"),
    ):
        assert other.load_features(prompt.images[0]) is None
        assert other.load_run(prompt, features, engine) is None


def test_a_file_with_the_name_of_another_package_s_is_a_miss(
    first: phi_edge.Model, engine: OrtEngine, question: Question, tmp_path: Path
) -> None:
    """Its header tells whose it is."""
    prompt = question(first, "What is it?")
    features = features_of(engine, prompt)
    originals = files(tmp_path)
    disk = DiskCache(tmp_path / "cache", first.manifest, "cuda")
    disk.save_features(prompt.images[0], features)
    disk.save_run(prompt, start(engine, prompt.input_ids, features))
    assert disk.load_run(prompt, features, engine) is not None
    for path in set(files(tmp_path)) - set(originals):
        (original,) = (each for each in originals if each.suffix == path.suffix)
        original.replace(path)
    assert disk.load_features(prompt.images[0]) is None
    assert disk.load_run(prompt, features, engine) is None
    assert len(files(tmp_path)) == 2


def test_a_file_that_is_replaced_while_it_is_looked_for_is_a_miss(
    model: phi_edge.Model,
    engine: OrtEngine,
    disk: DiskCache,
    question: Question,
    tmp_path: Path,
) -> None:
    """By a run of another image, between the look and the use."""
    prompt, other = (
        question(model, "What is it?", image) for image in ("wide_90x60", "tall_50x170")
    )
    (path,) = files(tmp_path, ".run")
    disk.save_run(other, start(engine, other.input_ids, features_of(engine, other)))
    (run_of_other,) = set(files(tmp_path, ".run")) - {path}
    features = features_of(engine, prompt)

    def replace(wanted: slice) -> Features:
        run_of_other.replace(path)
        return features[wanted]

    # Features are asked for when a file has been found.
    asked = MagicMock()
    asked.__getitem__.side_effect = replace
    assert disk.load_run(prompt, asked, engine) is None
    assert not run_of_other.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such modes")
def test_only_their_owner_can_read_the_files(first: phi_edge.Model, tmp_path: Path) -> None:
    assert first
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)} == {0o600}
    assert len(files(tmp_path)) == 2


def test_the_next_questions_make_no_files(
    second: phi_edge.Model, question: Question, tmp_path: Path
) -> None:
    before = files(tmp_path)
    greedy_tokens(second, question(second, "How many are there, and of which colour?"))
    assert files(tmp_path) == before


def test_the_least_recently_used_files_go_first(
    first: phi_edge.Model, question: Question, tmp_path: Path
) -> None:
    (run,) = files(tmp_path, ".run")
    abandoned = tmp_path / "cache" / f"{TEMPORARY_PREFIX}x"
    abandoned.write_bytes(b"")
    for age, path in enumerate([*files(tmp_path, ".features"), run, abandoned], start=1):
        os.utime(path, times=(time.time() - 4000 * age,) * 2)
    num_bytes = sum(path.stat().st_size for path in files(tmp_path))
    small = DiskCache(tmp_path / "cache", first.manifest, "cpu", num_bytes)
    crops = question(first, "").images[0]
    features = small.load_features(crops)
    assert features is not None
    small.save_features(first.preprocess(Image.new("RGB", (9, 9))), features)
    assert not run.exists()
    assert not abandoned.exists()
    assert small.load_features(crops) is not None


def test_rope_factors_of_the_other_kind_are_not_used(
    first: phi_edge.Model,
    second: phi_edge.Model,
    disk: DiskCache,
    engine: OrtEngine,
    compact_fp32: Path,
    tmp_path: Path,
) -> None:
    """A prompt of up to 4,096 tokens and a longer one share no keys."""
    short = first.encode_prompt(chat_text([("user", "sea " * 1300)]))
    long = first.encode_prompt(chat_text([("user", "sea " * 1400)]))
    assert short.num_tokens < 4096 < long.num_tokens
    with first.start(short):
        pass
    no_features = np.empty((0, 64), np.float32)
    assert disk.load_run(long, no_features, engine) is None
    with second.start(long):
        pass
    kept = disk.load_run(long, no_features, engine)
    assert kept is not None
    assert kept.num_tokens == long.num_tokens
    fresh = start(engine, long.input_ids, no_features)
    with phi_edge.load_model(compact_fp32, disk_cache=tmp_path / "cache") as third:
        np.testing.assert_allclose(third.start(long).logits, fresh.logits, rtol=0, atol=2e-5)


def test_a_run_that_went_another_way_is_not_taken_for_its_prompt(
    compact_fp32: Path, engine: OrtEngine, tmp_path: Path
) -> None:
    prompt, other = phi_edge.Prompt(random_ids(200)), random_ids(200, seed=1)
    with phi_edge.load_model(compact_fp32, disk_cache=tmp_path / "cache") as model:
        with model.start(prompt) as run:
            run.rewind(50)
            run.append(other.tolist())
        assert files(tmp_path) == []
        with model.start(prompt) as run:
            no_features = np.empty((0, 64), np.float32)
            expected = start(engine, prompt.input_ids, no_features).logits
            np.testing.assert_allclose(run.logits, expected, rtol=0, atol=2e-5)
        assert len(files(tmp_path, ".run")) == 1


def test_a_folder_that_cannot_be_written_costs_time_only(
    compact_fp32: Path, tmp_path: Path, question: Question, caplog: pytest.LogCaptureFixture
) -> None:
    with phi_edge.load_model(compact_fp32, disk_cache=tmp_path / "cache") as model:
        (tmp_path / "cache").rmdir()
        assert len(greedy_tokens(model, question(model, "What is it?"))) == 8
    assert "cannot be written" in caplog.text
