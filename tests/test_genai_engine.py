"""The engine on onnxruntime-genai gives what the one on ONNX Runtime gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from typing_extensions import override

import phi_edge
from phi_edge import EngineError, GenerationCancelled, Prompt, ProviderError
from phi_edge.engine.genai import GenaiEngine
from phi_edge.package import read_manifest

from .conftest import Exporter, GoldenSet
from .helpers.sequences import greedy_tokens, random_ids

pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")

EXACT = 1e-4
ONE_IMAGE = "<|user|>\n<|image_1|>\nWhat is it?<|end|>\n<|assistant|>\n"


@pytest.fixture(scope="module")
def genai(export_compact: Exporter) -> Iterator[phi_edge.Model]:
    with phi_edge.load_model(export_compact("fp32"), engine="genai") as model:
        yield model


@pytest.mark.parametrize("precision", ["fp32", "int4", "fp16"])
def test_greedy_tokens_and_features_are_the_same(
    compact: GoldenSet, export_compact: Exporter, precision: str
) -> None:
    folder = export_compact(precision)
    with (
        phi_edge.load_model(folder) as ours,
        phi_edge.load_model(folder, engine="genai", num_threads=1) as theirs,
    ):
        image = ours.preprocess(compact.image("wide_90x60"), 4)
        prompts = [ours.encode_prompt(ONE_IMAGE, [image]), Prompt(random_ids(300))]
        for prompt in prompts:
            assert greedy_tokens(theirs, prompt) == greedy_tokens(ours, prompt)
        np.testing.assert_array_equal(theirs.encode_image(image), ours.encode_image(image))


def test_golden_tokens(compact: GoldenSet, genai: phi_edge.Model) -> None:
    for name, case in compact.manifest["logits"].items():
        crops = [
            genai.preprocess(image, case["num_crops"])
            for image in compact.images(case.get("images"))
        ]
        run = genai.start(Prompt(compact.arrays[f"{name}__ids"], tuple(crops)))
        found = [run.logits, *(run.append(token_id) for token_id in case["greedy_ids"][:-1])]
        assert [int(logits.argmax()) for logits in found] == case["greedy_ids"], name


def test_the_tiny_package_answers_the_same() -> None:
    text = "<|user|>\nWhat do bees make?<|end|>\n<|assistant|>\n"
    with phi_edge.load_model(engine="genai") as model:
        events = model.generate(model.encode_prompt(text), max_tokens=8)
        assert "".join(event.text for event in events).strip() == "Honey."


@pytest.mark.parametrize(("length", "kept"), [(300, 120), (4110, 4100), (4110, 2000)])
def test_rewind_and_crossing(
    genai: phi_edge.Model, model: phi_edge.Model, length: int, kept: int
) -> None:
    ids = random_ids(length)
    run, ours = genai.start(Prompt(ids)), model.start(Prompt(ids))
    np.testing.assert_allclose(run.logits, ours.logits, rtol=0, atol=EXACT)
    for each in (run, ours):
        each.rewind(kept)
    np.testing.assert_allclose(run.append(5), ours.append(5), rtol=0, atol=EXACT)
    assert run.num_tokens == kept + 1


def test_decoding_across_4096_and_out_of_room(
    genai: phi_edge.Model, model: phi_edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi_edge.engine.genai._ROOM", 2)
    ids = random_ids(4094)
    run, ours = genai.start(Prompt(ids)), model.start(Prompt(ids))
    for token_id in range(5, 9):
        found, expected = run.append(token_id), ours.append(token_id)
        np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


def test_an_image_may_come_later(
    compact: GoldenSet, genai: phi_edge.Model, model: phi_edge.Model
) -> None:
    prompt = model.encode_prompt(ONE_IMAGE, [compact.image("wide_90x60")], num_crops=1)
    features = model.encode_image(prompt.images[0])
    run = genai.start(Prompt(random_ids(20)))
    run.extend(prompt.input_ids, features)
    ours = model.start(Prompt(random_ids(20)))
    ours.extend(prompt.input_ids, features)
    np.testing.assert_allclose(run.logits, ours.logits, rtol=0, atol=EXACT)
    run.rewind(20)
    expected = model.start(Prompt(random_ids(20))).logits
    np.testing.assert_allclose(run.logits, expected, rtol=0, atol=EXACT)


class SetLater(threading.Event):
    """Is set when it has been looked at a few times."""

    num_looks = 0

    @override
    def is_set(self) -> bool:
        self.num_looks += 1
        return self.num_looks > 2


def test_cancel_between_chunks(export_compact: Exporter) -> None:
    folder = export_compact("fp32")
    engine = GenaiEngine(folder, read_manifest(folder), "cpu")
    run, no_features = engine.begin(), np.empty((0, engine.model.hidden_size), np.float32)
    with pytest.raises(GenerationCancelled):
        run.extend(random_ids(2000), no_features, SetLater())
    assert 0 < run.num_cached < 2000


def test_another_provider_than_the_package_was_built_for(export_compact: Exporter) -> None:
    folder = export_compact("fp16", "cuda")
    with pytest.raises(EngineError, match="on cuda, for which it was built, and not on cpu"):
        phi_edge.load_model(folder, engine="genai", provider="cpu")
    with pytest.raises(ProviderError, match=r"phi-edge\[genai-cuda\]"):
        phi_edge.load_model(folder, engine="genai", provider="cuda")


def test_unknown_engine() -> None:
    with pytest.raises(ValueError, match="engine must be one of onnxruntime, genai"):
        phi_edge.load_model(engine="steam")
