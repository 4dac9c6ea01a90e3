"""The key/value cache in 8 bits: what it is made of, and that runs work with it as with float32."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import phi_edge
from export import Checkpoint, export_package
from phi_edge import Prompt
from phi_edge.engine.ort import OrtEngine
from phi_edge.package import ModelConfig, past_name, present_name, read_manifest
from quantize import make_recipe

from .helpers.genai import NUM_TOKENS, TEXT, genai_tokens
from .helpers.sequences import EXACT, random_ids

FP32 = make_recipe("fp32", "cpu")
INT8 = dataclasses.replace(FP32, cache_dtype="int8")
SAMPLE = Prompt(random_ids(2000, seed=7))

Scales = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def cache_parts(info: ModelConfig) -> list[tuple[int, str]]:
    return [(layer, part) for layer in range(info.num_hidden_layers) for part in ("key", "value")]


def empty_cache(info: ModelConfig) -> dict[str, npt.NDArray[np.generic]]:
    shape = (1, info.num_key_value_heads, 0, info.head_size)
    return {past_name(*part): np.zeros(shape, info.cache_dtype) for part in cache_parts(info)}


def cached(folder: Path, ids: npt.NDArray[np.int64]) -> list[Scales]:
    """Keys and values [kv_heads, num_tokens, head_size] of each layer."""
    manifest = read_manifest(folder)
    engine, info = OrtEngine(folder, manifest, "cpu"), manifest.model
    no_features = np.empty((0, info.hidden_size), np.float32)
    (embeds,) = engine.embedding.run(None, {"input_ids": ids[None], "image_features": no_features})
    feeds = {"inputs_embeds": embeds, "attention_mask": np.ones((1, len(ids)), np.int64)}
    names = [present_name(*part) for part in cache_parts(info)]
    found = engine.decoder.run(names, feeds | empty_cache(info))
    arrays = [array[0] for array in found]
    return list(zip(arrays[::2], arrays[1::2], strict=True))


@pytest.fixture(scope="module")
def scales(compact_fp32: Path) -> list[Scales]:
    """A fifth more than the largest keys and values of some text want, [kv_heads, head_size]."""
    layers = cached(compact_fp32, SAMPLE.input_ids)
    return [
        (1.2 * np.abs(key).max(1) / 127, 1.2 * np.abs(value).max(1) / 127) for key, value in layers
    ]


@pytest.fixture(scope="module")
def int8_folder(compact_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "package"
    export_package(Checkpoint(compact_checkpoint), folder, INT8, samples=[SAMPLE])
    return folder


@pytest.fixture
def int8_model(int8_folder: Path) -> phi_edge.Model:
    return phi_edge.load_model(int8_folder)


def test_package_says_it(int8_model: phi_edge.Model, model: phi_edge.Model) -> None:
    info, float_info = int8_model.manifest.model, model.manifest.model
    assert (info.io_dtype, info.cache_dtype) == ("float32", "int8")
    assert float_info.cache_dtype == "float32"
    assert 4 * info.cache_bytes_per_token == float_info.cache_bytes_per_token
    assert 4 * int8_model.start(Prompt(random_ids(9))).num_bytes == (
        model.start(Prompt(random_ids(9))).num_bytes
    )


def test_cache_holds_rounded_keys_and_values(
    int8_folder: Path, compact_fp32: Path, scales: list[Scales]
) -> None:
    """Of the first layer, whose input no rounding has changed; beyond the scale they saturate."""
    ids = random_ids(300)
    (exact, _) = cached(compact_fp32, ids)
    (found, _) = cached(int8_folder, ids)
    for numbers, values, scale in zip(found, exact, scales[0], strict=True):
        assert numbers.dtype == np.int8
        rounded = np.rint(values / scale[:, None]).clip(-128, 127)
        # A quotient on the edge may fall to either side.
        assert np.abs(numbers - rounded).max() <= 1
        assert np.mean(numbers != rounded) < 1e-3


@pytest.mark.parametrize("length", [1, 300, 4200])
def test_logits_are_near(int8_model: phi_edge.Model, model: phi_edge.Model, length: int) -> None:
    ids = random_ids(length)
    expected, found = (each.start(Prompt(ids)).logits for each in (model, int8_model))
    difference = np.abs(found - expected).max()
    assert 0 < difference < 0.02 * np.ptp(expected)


@pytest.mark.parametrize("num_cached", [1, 120])
def test_prompts_attend_as_single_tokens_do(int8_model: phi_edge.Model, num_cached: int) -> None:
    """Many tokens take another way through the attention, to the same cache."""
    ids = random_ids(200)
    no_features = np.empty((0, int8_model.manifest.model.hidden_size), np.float32)
    run, singly = int8_model.start(Prompt(ids[:num_cached])), int8_model.start(Prompt(ids[:1]))
    run.extend(ids[num_cached:], no_features)
    for token_id in ids[1:].tolist():
        logits = singly.append(token_id)
    np.testing.assert_allclose(run.logits, logits, rtol=0, atol=EXACT)
    for found, expected in zip(run.export_kv(200), singly.export_kv(200), strict=True):
        difference = np.abs(found.astype(int) - expected)
        # A quotient on the edge may fall to either side.
        assert difference.max() <= 1
        assert difference.mean() < 1e-3


@pytest.mark.parametrize(("length", "kept"), [(300, 120), (4110, 2000)])
def test_runs_rewind_and_extend(int8_model: phi_edge.Model, length: int, kept: int) -> None:
    """Over 4,096 and back, too."""
    ids = random_ids(length)
    run = int8_model.start(Prompt(ids))
    expected = run.logits
    run.rewind(kept)
    run.extend(ids[kept:-1], np.empty((0, int8_model.manifest.model.hidden_size), np.float32))
    np.testing.assert_allclose(run.append(int(ids[-1])), expected, rtol=0, atol=EXACT)


def test_rows_of_a_batch_are_runs(int8_model: phi_edge.Model) -> None:
    prompt = Prompt(random_ids(250))
    run = int8_model.start(prompt)
    batch = run.fork(2)
    assert batch is not None
    alone = [int8_model.start(prompt) for _ in range(2)]
    for seed in range(10):
        tokens = random_ids(2, seed).tolist()
        expected = [row.append(token) for row, token in zip(alone, tokens, strict=True)]
        np.testing.assert_allclose(batch.append(tokens), expected, rtol=0, atol=EXACT)


def test_an_int8_cache_wants_samples(compact_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wants samples"):
        export_package(Checkpoint(compact_checkpoint), tmp_path / "out", INT8)


def test_genai_gives_the_same_tokens(int8_folder: Path, int8_model: phi_edge.Model) -> None:
    events = int8_model.generate(int8_model.encode_prompt(TEXT), max_tokens=NUM_TOKENS)
    assert genai_tokens(int8_folder, TEXT) == [event.token_id for event in events]
