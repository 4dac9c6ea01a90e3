"""Packages with the layout of transformers.js, which have other names and no genai_config.json."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import phi_edge
from phi_edge import EngineError, Prompt, package
from phi_edge.package import DECODER

from .helpers.packages import edit_json
from .helpers.published import (
    BOUNDARY,
    CPU,
    GPU,
    check_refused,
    copy_published,
    edit_graph,
    graph_file,
    keep_few_logits,
    model_on,
    multiply_in_floats,
    to_transformers_js,
    watched_engine,
    wide_image,
    with_slots,
)
from .helpers.sequences import EXACT, greedy_tokens, random_ids, start

DECODER_FILE = "onnx/model_q4.onnx"


@pytest.fixture
def folder(published_copy: Path) -> Path:
    return to_transformers_js(published_copy)


@pytest.fixture(scope="module")
def original(published: Callable[[str], Path]) -> Iterator[phi_edge.Model]:
    with phi_edge.load_model(published(CPU)) as model:
        yield model


def test_it_gives_the_tokens_of_the_original(folder: Path, original: phi_edge.Model) -> None:
    prompts = [Prompt(random_ids(BOUNDARY - 3)), with_slots([wide_image(original.manifest.model)])]
    with phi_edge.load_model(folder) as model:
        for prompt in prompts:
            assert greedy_tokens(model, prompt) == greedy_tokens(original, prompt)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose decoder gives logits of every position; see `multiply_in_floats`."""
    folder = copy_published(CPU, tmp_path_factory.mktemp("exact") / "package")
    edit_graph(graph_file(folder, DECODER), multiply_in_floats)
    return to_transformers_js(folder)


@pytest.fixture(scope="module")
def few(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but that its decoder asks for how many positions to give logits."""
    folder = Path(shutil.copytree(exact, tmp_path_factory.mktemp("few") / "package"))
    edit_graph(folder / DECODER_FILE, keep_few_logits)
    return folder


def test_a_decoder_is_told_how_many_logits_to_give(exact: Path, few: Path) -> None:
    for length in (40, 400):
        rows = []
        for folder in (few, exact):
            run = start(watched_engine(folder), random_ids(length), np.empty((0, 64), np.float32))
            batch = run.fork(2)
            assert batch
            rows.append([run.logits, *batch.append((5, 9)), run.append(5), *run.append([6, 7, 8])])
        np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=EXACT)


def test_drafts_are_checked_with_few_logits(exact: Path, few: Path) -> None:
    prompt, answers, num_steps = Prompt(np.tile(random_ids(10), 5)), [], []
    for folder, most in ((exact, 0), (few, 0), (few, 16)):
        engine = watched_engine(folder)
        with model_on(engine, folder) as model:
            events = model.generate(prompt, max_tokens=60, draft_tokens=most)
            answers.append([event.token_id for event in events])
        num_steps.append(len(engine.steps))
    assert answers[0] == answers[1] == answers[2]
    assert num_steps[2] < num_steps[1]


def test_what_it_is(folder: Path, original: phi_edge.Model) -> None:
    found, expected = package.read_package(folder), original.manifest
    assert found.layout == "transformers.js"
    assert found.name == "Phi-3-vision-128k-instruct", "that of the checkpoint"
    assert found.graph_files[DECODER] == DECODER_FILE
    assert (found.provider, found.precision) == ("cpu", "int4")
    assert found.model == expected.model
    assert {f"{DECODER_FILE}_data", "config.json", "tokenizer.json"} < found.files.keys()
    files = [found.files[name] for name in (DECODER_FILE, f"{DECODER_FILE}_data")]
    assert found.weights_bytes(DECODER) == sum(entry.size for entry in files)


def test_float16_graphs(tmp_path: Path) -> None:
    folder = to_transformers_js(copy_published(GPU, tmp_path / "package"), "_q4f16")
    found = package.read_package(folder)
    assert found.graph_files[DECODER] == "onnx/model_q4f16.onnx"
    assert found.model.io_dtype == "float16"
    with phi_edge.load_model(folder, provider="cpu") as model:
        assert len(greedy_tokens(model, Prompt(random_ids(40)))) == 8


def test_the_first_whole_set_of_graphs_is_taken(folder: Path) -> None:
    for path in sorted((folder / "onnx").glob("*_q4.onnx")):
        shutil.copy(path, path.with_name(path.name.replace("_q4", "_fp16")))
    assert package.read_package(folder).graph_files[DECODER] == DECODER_FILE
    (folder / "onnx/vision_encoder_q4.onnx").unlink()
    assert package.read_package(folder).graph_files[DECODER] == "onnx/model_fp16.onnx"


def test_no_whole_set_of_graphs(folder: Path) -> None:
    (folder / "onnx/prepare_inputs_embeds_q4.onnx").unlink()
    said = "has the layout of transformers.js, and no whole set of graphs: it needs "
    check_refused(folder, f"{said}.*onnx/prepare_inputs_embeds_q4.onnx")


def test_another_model(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(model_type="phi3"))
    check_refused(folder, "has a model of the type 'phi3': phi_edge runs Phi-3.5-vision and")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", 0),
        ("num_attention_heads", "2"),
        ("hidden_size", None),
        ("max_position_embeddings", -1),
    ],
)
def test_a_damaged_configuration(folder: Path, name: str, value: object) -> None:
    edit_json(folder / "config.json", lambda config: config.update({name: value}))
    check_refused(folder, r"config\.json.* is damaged \(.*: fetch it again")


def test_weights_that_are_not_beside_their_graph(folder: Path) -> None:
    (folder / f"{DECODER_FILE}_data").rename(folder / "model_q4.onnx_data")
    check_refused(folder, re.escape(f"{DECODER_FILE}_data is missing"))


def test_the_engine_genai_says_why_not(folder: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")
    said = "layout of transformers.js: it has no genai_config.json. Use the engine 'onnxruntime'"
    with pytest.raises(EngineError, match=said):
        phi_edge.load_model(folder, engine="genai")
