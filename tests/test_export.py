"""Exporting: the graphs that come out, and where they are put."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

import phi_edge
from export import Checkpoint, ExportProgress, export_package
from phi_edge import (
    PackageError,
    Prompt,
    package,
)
from phi_edge.engine.session import open_session
from quantize import make_recipe

from .conftest import DEV, Exporter, GoldenSet
from .helpers.packages import TARGETS, WEIGHTS, operators

FP32 = make_recipe("fp32", "cpu")


# What comes out


@pytest.mark.parametrize(("precision", "provider"), TARGETS)
def test_inputs_and_outputs(export_compact: Exporter, precision: str, provider: str) -> None:
    """Every target has the names and types that onnxruntime-genai's `phi3v` expects."""
    folder = export_compact(precision, provider)
    manifest = package.read_manifest(folder)
    dtype = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}[manifest.model.io_dtype]
    assert manifest.provider == provider

    def signature(role: str) -> tuple[dict[str, Any], dict[str, Any]]:
        graph = ir.load(folder / package.GRAPH_FILES[role]).graph
        return (
            {str(value.name): value.dtype for value in graph.inputs},
            {str(value.name): value.dtype for value in graph.outputs},
        )

    assert signature("vision") == (
        {"pixel_values": ir.DataType.FLOAT, "image_sizes": ir.DataType.INT64},
        {"image_features": dtype},
    )
    assert signature("embedding") == (
        {"input_ids": ir.DataType.INT64, "image_features": dtype},
        {"inputs_embeds": dtype},
    )
    parts = [(layer, part) for layer in range(2) for part in ("key", "value")]
    assert signature("decoder") == (
        {
            "inputs_embeds": dtype,
            "attention_mask": ir.DataType.INT64,
            "rope_length": ir.DataType.INT64,
            "num_earlier": ir.DataType.INT64,
            **{f"past_key_values.{layer}.{part}": dtype for layer, part in parts},
        },
        {
            "logits": ir.DataType.FLOAT,
            "earlier_logits": ir.DataType.FLOAT,
            **{f"present.{layer}.{part}": dtype for layer, part in parts},
        },
    )


def test_operators_are_fused(export_compact: Exporter) -> None:
    folder = export_compact("int4")
    decoder = set(operators(folder / "decoder.onnx"))
    assert decoder >= {"GroupQueryAttention", "SkipSimplifiedLayerNormalization", "MatMulNBits"}
    assert not decoder & {"MatMul", "Softmax", "If", "RotaryEmbedding"}
    vision = set(operators(folder / "vision.onnx"))
    assert vision >= {"MultiHeadAttention", "QuickGelu", "SkipLayerNormalization", "MatMulNBits"}
    assert not vision & {"MatMul", "Softmax", "If", "Loop"}
    assert "GatherBlockQuantized" in set(operators(folder / "embedding.onnx"))


def test_directml_rotates_outside_of_attention(export_compact: Exporter) -> None:
    decoder = set(operators(export_compact("fp16", "dml") / "decoder.onnx"))
    assert "RotaryEmbedding" in decoder
    assert "If" not in decoder


def test_only_real_crops_are_computed(
    compact: GoldenSet, model: phi_edge.Model, compact_fp32: Path
) -> None:
    """Padding crops, as onnxruntime-genai appends them, change nothing, whatever is in them.

    Several images at once give what each gives alone.
    """
    crops = [model.preprocess(image, 4) for image in compact.images(["wide_90x60", "tall_50x170"])]
    alone = [model.encode_image(each) for each in crops]
    padded = np.full((2, 17, 3, 336, 336), np.nan, np.float32)
    for row, each in zip(padded, crops, strict=True):
        row[: len(each.pixel_values)] = each.pixel_values
    sizes = np.array([each.image_size for each in crops], np.int64)
    vision = open_session(compact_fp32 / "vision.onnx", "cpu")
    (together,) = vision.run(None, {"pixel_values": padded, "image_sizes": sizes})
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-6)


# How far reduced precision may be from fp32: largest and mean difference of image features
# (standard deviation 0.9) and logits (1.0). Random weights have no structure that rounding
# could spare, so int4 is far off by nature; the bounds would still show a wrong zero point, a
# swapped nibble or a missing layer, which give differences of several units.
TOLERANCES = {
    ("fp16", "cpu"): ((0.02, 0.002), (0.02, 0.003)),
    ("fp16", "cuda"): ((0.02, 0.002), (0.02, 0.003)),
    ("fp16", "dml"): ((0.02, 0.002), (0.02, 0.003)),
    ("int4", "cpu"): ((0.2, 0.02), (1.5, 0.25)),
    ("int4", "cuda"): ((0.02, 0.002), (1.5, 0.25)),
    ("int4", "dml"): ((0.02, 0.002), (1.5, 0.25)),
}


@pytest.mark.parametrize(("precision", "provider"), TOLERANCES)
def test_reduced_precision_is_near_fp32(
    compact: GoldenSet,
    model: phi_edge.Model,
    export_compact: Exporter,
    precision: str,
    provider: str,
) -> None:
    crops = model.preprocess(compact.image("wide_90x60"), 1)
    ids = compact.arrays["one_image__ids"]
    with phi_edge.load_model(export_compact(precision, provider)) as reduced:
        pairs = (
            (reduced.encode_image(crops), model.encode_image(crops)),
            (
                reduced.start(Prompt(ids, (crops,))).logits,
                model.start(Prompt(ids, (crops,))).logits,
            ),
        )
    tolerances = TOLERANCES[precision, provider]
    for (found, expected), (largest, mean) in zip(pairs, tolerances, strict=True):
        error = np.abs(found - expected)
        assert 0 < error.max() < largest
        assert error.mean() < mean


def test_sharded_checkpoint_gives_the_same_package(
    checkpoint_copy: Path, compact_fp32: Path, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint_copy / WEIGHTS)
    (checkpoint_copy / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"part-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, checkpoint_copy / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"weight_map": weight_map}
    (checkpoint_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    manifest = export_package(Checkpoint(checkpoint_copy), tmp_path / "out", FP32)
    expected = package.read_manifest(compact_fp32)
    assert manifest.files == expected.files
    assert manifest.source_digest != expected.source_digest


def test_export_repeats_itself_to_the_byte(compact_checkpoint: Path, tmp_path: Path) -> None:
    recipe = make_recipe("int4", "cpu", method="nearest", block_size=32)
    first, second = (
        export_package(Checkpoint(compact_checkpoint), tmp_path / name, recipe) for name in "ab"
    )
    assert first == second


def test_progress(compact_checkpoint: Path, tmp_path: Path) -> None:
    states: list[ExportProgress] = []
    export_package(Checkpoint(compact_checkpoint), tmp_path / "out", FP32, progress=states.append)
    counts = [state.num_items for state in states]
    assert counts == list(range(len(states)))
    assert {state.total_items for state in states} == {len(states)}
    assert [state.num_bytes for state in states] == sorted(state.num_bytes for state in states)
    assert 0 < states[-1].num_bytes < states[-1].total_bytes
    assert all(state.item for state in states)


# Where packages go


def test_target_is_not_overwritten_by_accident(
    compact_checkpoint: Path, package_copy: Path
) -> None:
    checkpoint = Checkpoint(compact_checkpoint)
    (package_copy / "decoder.onnx").write_text("old")
    with pytest.raises(PackageError, match="--overwrite"):
        export_package(checkpoint, package_copy, FP32)
    assert (package_copy / "decoder.onnx").read_text() == "old"
    export_package(checkpoint, package_copy, FP32, overwrite=True)
    package.check_files(package_copy, package.read_manifest(package_copy), verify=True)
    assert [path.name for path in package_copy.parent.iterdir()] == [package_copy.name]


def test_a_folder_that_is_no_package_is_never_overwritten(
    compact_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PackageError, match="not a package"):
        export_package(Checkpoint(compact_checkpoint), tmp_path, FP32, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_failed_overwrite_keeps_the_old_package(
    compact_checkpoint: Path, package_copy: Path
) -> None:
    class Interrupted(Exception):  # noqa: N818
        pass

    def interrupt(state: ExportProgress) -> None:
        if state.num_items == 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        export_package(
            Checkpoint(compact_checkpoint), package_copy, FP32, overwrite=True, progress=interrupt
        )
    package.check_files(package_copy, package.read_manifest(package_copy), verify=True)
    assert [path.name for path in package_copy.parent.iterdir()] == [package_copy.name]


CLEAN_EXPORT = """
import sys
sys.argv = ["phi-edge", "export", sys.argv[1], sys.argv[2], "--precision", "int4"]
from phi_edge.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "transformers", "optimum"}))
"""


def test_export_runs_no_code_of_the_checkpoint_and_needs_no_torch(
    checkpoint_copy: Path, tmp_path: Path
) -> None:
    """A checkpoint that brings code has it ignored."""
    trap = tmp_path / "trap"
    for name in ("modeling_phi3_v.py", "configuration_phi3_v.py", "conftest.py"):
        (checkpoint_copy / name).write_text(f"open({str(trap)!r}, 'w')")
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_EXPORT, checkpoint_copy, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert not trap.exists()


def test_export_of_the_real_tokenizer(tmp_path: Path) -> None:
    if not DEV.is_dir():
        pytest.skip("the large golden set is not at ../shared")
    manifest = export_package(Checkpoint(DEV / "checkpoint"), tmp_path / "out", FP32)
    assert manifest.model.bos_token_id == 1
    assert manifest.model.eos_token_ids == (32007, 32001, 32000)
    assert manifest.model.pad_token_id == 32000
    assert manifest.model.num_crops == 16
