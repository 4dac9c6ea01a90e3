"""Calibrated exports: what layers are given, what is made of it, and going on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

import phi_edge
from export import Checkpoint, ExportProgress, encode_samples, export_package
from export.calibration import calibrate
from export.journal import Journal
from export.layerwise import LayerwiseModel
from phi_edge import CheckpointError, SamplesError
from phi_edge.evaluation.samples import LINES_FILE, Sample, bundled_samples, read_samples
from phi_edge.package import read_manifest
from phi_edge.text.prompt import Prompt
from quantize import BlockQuantizer, Method, dequantize, make_recipe

from .helpers.packages import IMAGE, SAMPLES, edit_weights

GPTQ = make_recipe("int4", "cpu")


@pytest.fixture
def prompts(checkpoint: Checkpoint) -> list[Prompt]:
    return encode_samples(checkpoint, SAMPLES)


@pytest.fixture
def layerwise(checkpoint: Checkpoint, prompts: list[Prompt], tmp_path: Path) -> LayerwiseModel:
    return LayerwiseModel(checkpoint, prompts, Journal(tmp_path / "journal", {}))


def test_layer_by_layer_gives_the_logits_of_the_package(
    checkpoint: Checkpoint,
    prompts: list[Prompt],
    layerwise: LayerwiseModel,
    model: phi_edge.Model,
) -> None:
    head = checkpoint.read("lm_head.weight").astype(np.float32)
    for prompt, normed in zip(prompts, layerwise.normed(), strict=True):
        logits = model.start(prompt).logits
        np.testing.assert_allclose(head @ normed[-1], logits, rtol=0, atol=2e-4)


def test_what_the_first_layer_is_given(
    checkpoint: Checkpoint, prompts: list[Prompt], layerwise: LayerwiseModel, model: phi_edge.Model
) -> None:
    """Token embeddings and image features, RMS-normed."""
    seen: list[npt.NDArray[np.float32]] = []

    def see(name: str, values: npt.NDArray[np.float32]) -> None:
        if name == "self_attn.qkv_proj":
            seen.append(values)

    layerwise.run_layer(0, see)
    table = checkpoint.read("model.embed_tokens.weight").astype(np.float32)
    norm = checkpoint.read("model.layers.0.input_layernorm.weight").astype(np.float32)
    for prompt, found in zip(prompts, seen, strict=True):
        rows = table[prompt.input_ids.clip(0)]
        for crops in prompt.images:
            rows[prompt.input_ids < 0] = model.encode_image(crops)
        mean = np.mean(rows**2, axis=1, keepdims=True)
        expected = rows / np.sqrt(mean + checkpoint.config.rms_norm_eps) * norm
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_what_is_cached_is_within_the_scales(
    checkpoint: Checkpoint, prompts: list[Prompt], tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal", {})
    calibration = calibrate(checkpoint, GPTQ, prompts, journal, lambda *_: None)
    assert len(calibration.cache_scales) == checkpoint.config.num_hidden_layers
    largest = np.zeros_like(calibration.cache_scales[0][0])

    def see(name: str, values: npt.NDArray[np.float32]) -> None:
        if name == "key":
            np.maximum(largest, np.abs(values).max(axis=1), out=largest)

    LayerwiseModel(checkpoint, prompts, Journal(tmp_path / "other", {})).run_layer(0, see)
    np.testing.assert_allclose(calibration.cache_scales[0][0] * 127, 1.2 * largest, rtol=1e-4)


def with_outliers(folder: Path) -> Path:
    """Make some channels of the residual stream, and of the inner layers, far larger than others,
    without a change to what the model says: norms give more, and the weights after them take less.
    """

    def change(tensors: dict[str, npt.NDArray[np.generic]]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
                scaled = tensor.astype(np.float32)
                scaled[::16] *= 64
                tensors[name] = scaled.astype(tensor.dtype)
        for name, tensor in tensors.items():
            if name.endswith(("qkv_proj.weight", "gate_up_proj.weight")):
                scaled = tensor.astype(np.float32)
                scaled[:, ::16] /= 64
                tensors[name] = scaled.astype(tensor.dtype)

    edit_weights(folder, change)
    return folder


def test_outliers_do_little_harm(
    checkpoint_copy: Path, prompts: list[Prompt], model: phi_edge.Model, tmp_path: Path
) -> None:
    """Scaled inputs take them away, so that blocks of 64 do better than the nearest of 32."""
    checkpoint = Checkpoint(with_outliers(checkpoint_copy))
    errors = {}
    recipes: list[tuple[Method, int]] = [("nearest", 32), ("gptq", 64)]
    for method, block_size in recipes:
        recipe = make_recipe("int4", "cpu", method=method, block_size=block_size)
        package = tmp_path / method
        export_package(checkpoint, package, recipe, samples=prompts)
        with phi_edge.load_model(package) as found:
            differences = [found.start(p).logits - model.start(p).logits for p in prompts]
        errors[method] = float(np.mean(np.square(differences)))
    assert errors["gptq"] < 0.5 * errors["nearest"]


def test_weights_that_cannot_be_calibrated_are_named(
    checkpoint_copy: Path, prompts: list[Prompt], tmp_path: Path
) -> None:
    def change(tensors: dict[str, npt.NDArray[np.generic]]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].copy()
        tensors["lm_head.weight"][3, 3] = np.inf

    edit_weights(checkpoint_copy, change)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: .*infinite"):
        export_package(Checkpoint(checkpoint_copy), tmp_path / "out", GPTQ, samples=prompts)
    assert not (tmp_path / "out").exists()


def test_the_manifest_tells_what_was_found(
    checkpoint: Checkpoint, prompts: list[Prompt], tmp_path: Path
) -> None:
    manifest = export_package(checkpoint, tmp_path / "package", GPTQ, samples=prompts)
    layers = manifest.recipe["layers"]
    assert len(layers) == 4 * checkpoint.config.num_hidden_layers + 1
    assert all(0 < facts["error"] < 0.3 for facts in layers.values())
    assert read_manifest(tmp_path / "package") == manifest


def test_samples_of_images_change_the_weights(
    checkpoint: Checkpoint, prompts: list[Prompt], tmp_path: Path
) -> None:
    manifests = [
        export_package(checkpoint, tmp_path / str(number), GPTQ, samples=prompts[: number + 1])
        for number in range(2)
    ]
    first, second = (manifest.files["decoder.onnx.data"] for manifest in manifests)
    assert first.size == second.size
    assert first != second


def test_calibration_goes_on_where_it_was_interrupted(
    checkpoint: Checkpoint, prompts: list[Prompt], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    whole = export_package(checkpoint, tmp_path / "whole", GPTQ, samples=prompts)
    num_layers = caplog.text.count("running layer")
    assert num_layers == checkpoint.config.num_hidden_layers

    def interrupt(state: ExportProgress) -> None:
        if state.item == "model.layers.1":
            raise KeyboardInterrupt

    caplog.clear()
    target = tmp_path / "package"
    with pytest.raises(KeyboardInterrupt):
        export_package(checkpoint, target, GPTQ, samples=prompts, progress=interrupt)
    assert not target.exists()
    again = export_package(checkpoint, target, GPTQ, samples=prompts)
    assert again.files == whole.files
    assert caplog.text.count("running layer") == num_layers
    assert [path.name for path in tmp_path.iterdir() if "calibration" in path.name] == []


def test_other_samples_are_another_job(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    Journal(folder, {"samples": 1}).store("weight", {"packed": np.arange(3)})
    kept = Journal(folder, {"samples": 1}).load("weight")
    assert kept is not None
    assert kept.arrays["packed"].tolist() == [0, 1, 2]
    assert Journal(folder, {"samples": 2}).load("weight") is None


def test_a_record_has_arrays_and_facts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", {})
    facts = {"linears": {"lm_head": {"error": 0.1, "prefill_error": None, "has_channels": False}}}
    journal.store("layer", {"model.norm.weight": np.arange(3, dtype=np.float32)}, facts)
    found = journal.load("layer")
    assert found is not None
    assert found.facts == facts
    assert {name: array.tolist() for name, array in found.arrays.items()} == {
        "model.norm.weight": [0, 1, 2]
    }


def test_a_journal_in_another_layout_is_cleared(tmp_path: Path) -> None:
    """As earlier releases left it: the job alone was its key, and facts were arrays."""
    folder, job = tmp_path / "journal", {"samples": 1}
    folder.mkdir()
    (folder / "journal.json").write_text(json.dumps(job, sort_keys=True), encoding="utf-8")
    facts: dict[str, Any] = {"linear:lm_head": np.zeros(5)}
    np.savez(folder / "lm_head.facts.npz", **facts)
    assert Journal(folder, job).load("lm_head.facts") is None
    assert [file.name for file in folder.iterdir()] == ["journal.json"]


@pytest.mark.parametrize(
    ("owner", "step"), [(np, "savez"), (ZipFile, "writestr"), (Path, "replace")]
)
def test_a_record_is_whole_or_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
) -> None:
    journal = Journal(tmp_path / "journal", {})
    journal.store("layer", {"array": np.zeros(2)}, {"number": 1})

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed)
        with pytest.raises(KeyboardInterrupt):
            journal.store("layer", {"array": np.ones(2)}, {"number": 2})
    found = Journal(tmp_path / "journal", {}).load("layer")
    assert found is not None
    assert (found.facts, found.arrays["array"].tolist()) == ({"number": 1}, [0, 0])


def test_calibration_wants_samples(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wants samples"):
        export_package(checkpoint, tmp_path / "package", GPTQ)


def correlated_inputs(in_features: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(0)
    common = rng.standard_normal((2000, 4)) @ rng.standard_normal((4, in_features))
    return (common + 0.2 * rng.standard_normal((2000, in_features))).astype(np.float32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block_size", "in_features"), [(4, 32, 96), (4, 64, 80)])
def test_compensation_takes_most_of_the_output_error_away(
    bits: int, block_size: int, in_features: int, *, symmetric: bool
) -> None:
    x = correlated_inputs(in_features)
    weight = np.random.default_rng(1).standard_normal((40, in_features)).astype(np.float32)
    errors = {}
    for method in ("nearest", "search", "gptq"):
        quantizer = BlockQuantizer(4, block_size, symmetric=symmetric, method=method)
        blocks = quantizer.quantize(weight, x.T @ x if method == "gptq" else None)
        difference = dequantize(blocks, bits, in_features) - weight
        errors[method] = (np.mean(difference**2), np.mean((x @ difference.T) ** 2))
    assert errors["search"][0] < errors["nearest"][0]
    assert errors["gptq"][1] < 0.5 * errors["search"][1]


def test_without_correlation_there_is_nothing_to_compensate() -> None:
    weight = np.random.default_rng(0).standard_normal((40, 96)).astype(np.float32)
    search, gptq = (
        BlockQuantizer(4, 32, symmetric=False, method="search").quantize(weight, moments)
        for moments in (None, np.eye(96, dtype=np.float32))
    )
    for one, other in zip(search, gptq, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("file", "reason"),
    [("tokenizer.json", "cannot be read"), ("preprocessor_config.json", "incomplete")],
)
def test_samples_of_a_checkpoint_with_a_bad_file(
    checkpoint_copy: Path, file: str, reason: str
) -> None:
    (checkpoint_copy / file).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{file} .*{reason}"):
        encode_samples(Checkpoint(checkpoint_copy), SAMPLES)


def test_bundled_samples(checkpoint: Checkpoint) -> None:
    parts = [bundled_samples("calibration"), bundled_samples("held_out")]
    for samples in parts:
        assert any(sample.images for sample in samples)
        assert all(sample.answer for sample in samples)
        for prompt, sample in zip(encode_samples(checkpoint, samples), samples, strict=True):
            assert len(prompt.images) == len(sample.images)
    calibration, held_out = ({(s.question, s.answer) for s in samples} for samples in parts)
    assert not calibration & held_out


def test_a_folder_of_images_and_texts(tmp_path: Path) -> None:
    (tmp_path / "photo.PNG").write_bytes(IMAGE.read_bytes())
    (tmp_path / "used.png").write_bytes(IMAGE.read_bytes())
    (tmp_path / "note.txt").write_text("How are you?\n", encoding="utf-8")
    line = '{"question": "Q", "answer": "A", "images": ["used.png"]}'
    (tmp_path / LINES_FILE).write_text(f"{line}\n", encoding="utf-8")
    assert read_samples(tmp_path) == [
        Sample("Q", "A", (tmp_path / "used.png",)),
        Sample("How are you?"),
        Sample("Describe the image.", images=(tmp_path / "photo.PNG",)),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 1 is no sample"),
        ('{"answer": "A"}', "question"),
        ('{"question": "Q", "picture": "a.png"}', "picture"),
        ('{"question": "Q", "images": ["a.png"]}', "there is no image a.png"),
    ],
)
def test_lines_that_are_no_samples(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / LINES_FILE).write_text(line, encoding="utf-8")
    with pytest.raises(SamplesError, match=reason):
        read_samples(tmp_path)


def test_folders_without_samples(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match=f"has no {LINES_FILE}"):
        read_samples(tmp_path)
    with pytest.raises(SamplesError, match="there is no folder"):
        read_samples(tmp_path / "nowhere")


def test_answers_follow_their_prompts(checkpoint: Checkpoint, prompts: list[Prompt]) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    answer = tokenizer.encode("Good morning.<|end|>", add_special_tokens=False).ids
    assert prompts[0].input_ids[-len(answer) :].tolist() == answer
    (asked, _) = SAMPLES[0].encode(tokenizer, [])
    assert prompts[0].input_ids[: -len(answer)].tolist() == asked.input_ids.tolist()
