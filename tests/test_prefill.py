"""Weights of their own for prompts: the arithmetic, which layers have them, and when they run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

import phi_edge
from export import Checkpoint, encode_samples, export_package
from export.layers import Linear, make_model
from export.weights import Weights
from phi_edge import PackageError, Prompt
from phi_edge.package import MANIFEST_FILE, read_manifest
from quantize import CalibratedQuantizer, ChannelQuantizer, make_recipe

from .helpers.packages import SAMPLES, operators
from .helpers.sequences import random_ids

Array = npt.NDArray[np.float32]

RECIPE = make_recipe("int4", "cpu", method="nearest", block_size=32, prefill_dtype="int8")
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def prefill_folder(compact_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefill") / "package"
    export_package(Checkpoint(compact_checkpoint), folder, RECIPE)
    return folder


def rows_of(in_features: int) -> Array:
    """Inputs of very different sizes, one of them zero."""
    rows = np.random.default_rng(0).standard_normal((20, in_features), np.float32)
    rows[3] *= 1000
    rows[5] = 0
    return rows


def test_graph_multiplies_as_the_quantizer_says(compact_checkpoint: Path) -> None:
    checkpoint = Checkpoint(compact_checkpoint)
    linear = Linear(Weights(checkpoint, "float32", RECIPE.for_prefill()), "decoder", DOWN)
    weight = checkpoint.read(f"{DOWN}.weight").astype(np.float32)
    rows = rows_of(weight.shape[1])
    x, y = (ir.val(name, ir.DataType.FLOAT, ["rows", None]) for name in "xy")
    model = ir.to_proto(make_model("linear", [x], [y], linear))
    session = ort.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"x": rows})
    expected = ChannelQuantizer().product(weight, rows)
    scale = np.abs(expected).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * scale.max())
    np.testing.assert_allclose(found[:3], expected[:3], rtol=0, atol=5e-3 * scale[:3].max())


def test_large_rows_do_not_coarsen_others() -> None:
    weight = np.random.default_rng(1).standard_normal((64, 96), np.float32)
    rows = rows_of(96)
    usual = np.delete(rows, [3, 5], axis=0)
    beside = np.delete(ChannelQuantizer().product(weight, rows), [3, 5], axis=0)
    error = np.linalg.norm(beside - usual @ weight.T) / np.linalg.norm(usual @ weight.T)
    assert error < 0.02


def test_products_of_weights_never_saturate() -> None:
    """Two products of 8-bit inputs and these are within 16 bits."""
    values, scales = ChannelQuantizer().quantize_channels(rows_of(32))
    assert 2 * 255 * np.abs(values.astype(int)).max() < 2**15
    assert scales[5] == 1
    with pytest.raises(ValueError, match="infinite or undefined"):
        ChannelQuantizer().quantize_channels(np.full((2, 2), np.nan, np.float32))


def test_layers_that_it_would_harm_keep_their_blocks() -> None:
    """A channel that is large on every token leaves the others a few of 255 steps."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((64, 256), np.float32)
    rows = rng.standard_normal((300, 256), np.float32)
    quantizer, channels = CalibratedQuantizer(4, 32, symmetric=False), ChannelQuantizer()

    usual = quantizer.calibrate(weight, rows.T @ rows, rows, channels)
    rows[:, 7] *= 3000
    weight[:, 7] = 0
    harmed = quantizer.calibrate(weight, rows.T @ rows, rows, channels)
    assert usual.channels is not None
    assert harmed.channels is None
    assert usual.prefill_error is not None
    assert harmed.prefill_error is not None
    assert usual.prefill_error < usual.error < harmed.prefill_error


def test_calibration_decides_layer_by_layer(
    compact_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([0, 9, 0, 0, 0, 0, 0, 9])
    monkeypatch.setattr(ChannelQuantizer, "error", lambda *_: next(errors))
    recipe = make_recipe("int4", "cpu", prefill_dtype="int8")
    checkpoint = Checkpoint(compact_checkpoint)
    samples = encode_samples(checkpoint, SAMPLES[:1])  # no image, so the decoder alone is judged
    manifest = export_package(checkpoint, tmp_path / "package", recipe, samples=samples)
    layers = manifest.recipe["layers"]
    kept = [name for name, layer in layers.items() if not layer["has_channels"]]
    assert kept == ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj", "lm_head"]
    assert layers["lm_head"]["prefill_error"] is None
    products = [name for name in operators(tmp_path / "package" / "prefill.onnx") if "Mat" in name]
    blocks, channels = "MatMulNBits", "DynamicQuantizeMatMul"
    assert products == [channels, blocks, channels, channels, *[channels] * 3, blocks, blocks]
    with phi_edge.load_model(tmp_path / "package") as model:
        assert model.start(Prompt(random_ids(40))).num_tokens == 40


def test_prompts_run_on_them_and_all_else_does_not(
    prefill_folder: Path, compact_checkpoint: Path, tmp_path: Path
) -> None:
    plain = make_recipe("int4", "cpu", method="nearest", block_size=32)
    export_package(Checkpoint(compact_checkpoint), tmp_path / "plain", plain)
    prompt, short = Prompt(random_ids(300)), Prompt(random_ids(9))
    with (
        phi_edge.load_model(prefill_folder) as fast,
        phi_edge.load_model(tmp_path / "plain") as model,
    ):
        expected, found = model.start(prompt), fast.start(prompt)
        assert not np.array_equal(found.logits, expected.logits)
        # Both are near to what neither rounds.
        np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=0.5)
        np.testing.assert_array_equal(fast.start(short).logits, model.start(short).logits)

        guesses = random_ids(40, seed=1).tolist()
        verified = found.append(guesses)
        found.rewind(300)
        one_by_one = np.stack([found.append(token_id) for token_id in guesses])
        np.testing.assert_allclose(verified, one_by_one, rtol=0, atol=1e-2)


def test_a_run_goes_on_past_the_short_factors(prefill_folder: Path) -> None:
    """Where everything is prefilled again, with both graphs' buffers replaced."""
    with phi_edge.load_model(prefill_folder) as model:
        ids = random_ids(4100)
        run = model.start(Prompt(ids[:4090]))
        for token_id in ids[4090:]:
            run.append(int(token_id))
        whole = model.start(Prompt(ids))
        np.testing.assert_allclose(run.logits, whole.logits, rtol=0, atol=0.1)


def test_a_graph_that_is_not_listed_is_not_run(prefill_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    for file in prefill_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert "prefill" in read_manifest(folder).graph_files
    del manifest["files"]["prefill.onnx"], manifest["files"]["prefill.onnx.data"]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert "prefill" not in read_manifest(folder).graph_files
    (folder / "prefill.onnx").write_bytes(b"")
    with phi_edge.load_model(folder) as model:
        assert model.start(Prompt(random_ids(40))).num_tokens == 40
    (prefill_folder / "prefill.onnx.data").rename(tmp_path / "moved")
    try:
        with pytest.raises(PackageError, match=r"prefill\.onnx\.data is missing"):
            phi_edge.load_model(prefill_folder)
    finally:
        (tmp_path / "moved").rename(prefill_folder / "prefill.onnx.data")


def test_only_the_cpu_has_them() -> None:
    with pytest.raises(ValueError, match="on the CPU alone"):
        make_recipe("int4", "cuda", prefill_dtype="int8")
    assert make_recipe("int4", "cpu").for_prefill() is None
