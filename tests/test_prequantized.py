"""Checkpoints in the layouts of GPTQ and AWQ, packed here apart from the exporter."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

import phi_edge
from export import Checkpoint, encode_samples, export_package
from export.packed import PackedLayout
from phi_edge import CheckpointError, Prompt
from phi_edge.evaluation.samples import Sample
from quantize import QuantizedBlocks, Recipe, dequantize, make_recipe

from .conftest import GoldenSet
from .helpers.packages import WEIGHTS, Tensors

INT4 = make_recipe("int4", "cpu", method="nearest")
FP32 = make_recipe("fp32", "cpu")
LINEAR = "model.layers.1.mlp.down_proj"
HEAD = "model.lm_head"

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Layout(NamedTuple):
    """Of a checkpoint to write: what config.json says, and what it means."""

    method: str
    bits: int
    group_size: int
    config: dict[str, Any]
    zero_offset: int = 0


GPTQ = Layout("gptq", 4, 32, {"checkpoint_format": "gptq", "sym": True, "desc_act": False}, 1)
GPTQ_V2 = Layout("gptq", 4, 16, {"checkpoint_format": "gptq_v2", "sym": False})
GPTQ_8 = Layout("gptq", 8, 64, {"sym": False}, 1)
AWQ = Layout("awq", 4, 64, {"version": "GEMM", "zero_point": True})
EACH_LAYOUT = pytest.mark.parametrize(
    "layout", [GPTQ, GPTQ_V2, GPTQ_8, AWQ], ids=["gptq", "gptq_v2", "gptq-8", "awq"]
)


def words(values: Integers, bits: int, order: list[int] | None = None) -> npt.NDArray[np.int32]:
    """Rows of integers in 32-bit words, lowest bits first, each word's in an order."""
    count = 32 // bits
    total = np.zeros((len(values), values.shape[1] // count), np.int64)
    for place, index in enumerate(order or range(count)):
        total += values[:, index::count] << (bits * place)
    return total.astype(np.uint32).view(np.int32)


def quantize(weight: Floats, layout: Layout) -> tuple[Integers, Integers, npt.NDArray[np.float16]]:
    """Integers [out, in], zero points and scales [out, groups]."""
    groups = weight.reshape(len(weight), -1, layout.group_size)
    top = 2**layout.bits - 1
    scales = (2.2 * np.abs(groups).max(-1) / top).astype(np.float16)
    # Spread, so that a wrong one shows, and none of 0, which "gptq" cannot hold.
    zeros = np.full(scales.shape, (top + 1) // 2)
    if not layout.config.get("sym"):
        zeros += np.random.default_rng(0).integers(-1, 2, zeros.shape)
    values = np.rint(groups / scales[..., None].astype(np.float32)).astype(np.int64)
    return (values + zeros[..., None]).clip(0, top).reshape(weight.shape), zeros, scales


def pack(values: Integers, zeros: Integers, scales: Any, layout: Layout) -> Tensors:
    """The tensors of a linear layer."""
    tensors: Tensors = {"scales": scales.T}
    if layout.method == "awq":
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        tensors["qweight"] = words(values.T, layout.bits, order)
        tensors["qzeros"] = words(zeros.T, layout.bits, order)
    else:
        tensors["qweight"] = words(values, layout.bits).T
        tensors["qzeros"] = words(zeros.T - layout.zero_offset, layout.bits)
        tensors["g_idx"] = (np.arange(values.shape[1]) // layout.group_size).astype(np.int32)
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def write_checkpoint(folder: Path, layout: Layout) -> dict[str, Floats]:
    """Quantize a checkpoint's decoder in place; gives what its weights stand for."""
    tensors = load_file(folder / WEIGHTS)
    meant: dict[str, Floats] = {}
    for name in list(tensors):
        linear, _, part = name.rpartition(".")
        if name.startswith("model.layers.") and part == "weight" and tensors[name].ndim == 2:
            values, zeros, scales = quantize(tensors.pop(name).astype(np.float32), layout)
            packed = pack(values, zeros, scales, layout)
            tensors |= {f"{linear}.{part}": packed[part] for part in packed}
            of_input = np.arange(values.shape[1]) // layout.group_size
            steps = (values - zeros[:, of_input]).astype(np.float32)
            meant[linear] = steps * scales[:, of_input].astype(np.float32)
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": layout.method,
        "bits": layout.bits,
        "group_size": layout.group_size,
        **layout.config,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return meant


def replace_weights(folder: Path, weights: dict[str, Floats]) -> Path:
    """Put other weights into a checkpoint."""
    tensors = load_file(folder / WEIGHTS)
    save_file(
        tensors | {f"{name}.weight": weight for name, weight in weights.items()}, folder / WEIGHTS
    )
    return folder


def read_decoder(package: Path) -> dict[str, tuple[Floats, ir.Node]]:
    """What each `MatMulNBits` multiplies by, and its node."""
    graph = ir.load(package / "decoder.onnx").graph
    arrays = {
        name: value.const_value.numpy()
        for name, value in graph.initializers.items()
        if value.const_value is not None
    }
    found = {}
    for node in graph:
        if node.op_type == "MatMulNBits":
            names = [str(value.name) for value in node.inputs[1:4] if value is not None]
            packed, scales, zeros = (arrays[name] for name in names)
            blocks = QuantizedBlocks(packed, scales.astype(np.float32), zeros)
            in_features, bits = (node.attributes[key].as_int() for key in ("K", "bits"))
            weight = dequantize(blocks, bits, in_features)
            found[names[0].removesuffix(".weight")] = weight, node
    return found


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
@EACH_LAYOUT
def test_blocks_are_kept_to_the_bit(
    checkpoint_copy: Path, tmp_path: Path, layout: Layout, provider: str
) -> None:
    meant = write_checkpoint(checkpoint_copy, layout)
    checkpoint, target = Checkpoint(checkpoint_copy), tmp_path / "package"
    recipe = make_recipe("int4", provider, method="nearest")
    if (provider, layout.bits) == ("cuda", 8):
        with pytest.raises(CheckpointError, match="for the CPU alone"):
            export_package(checkpoint, target, recipe, provider=provider)
        return
    manifest = export_package(checkpoint, target, recipe, provider=provider)

    found = read_decoder(target)
    assert found.keys() == meant.keys() | {HEAD}
    for name, weight in meant.items():
        np.testing.assert_array_equal(found[name][0], weight)
        assert found[name][1].attributes["block_size"].as_int() == layout.group_size
    assert found[HEAD][1].attributes["bits"].as_int() == 4
    described = manifest.recipe["quantizers"]
    assert described["decoder"]["method"] == f"{layout.method}-checkpoint"
    assert described["decoder"]["bits"] == layout.bits
    assert described["decoder"]["block_size"] == layout.group_size
    assert described["lm_head"] == dataclasses.asdict(recipe.quantizers["lm_head"])


@EACH_LAYOUT
def test_answers_are_those_of_the_weights_that_are_meant(
    checkpoint_copy: Path,
    compact: GoldenSet,
    compact_checkpoint: Path,
    tmp_path: Path,
    layout: Layout,
) -> None:
    meant = write_checkpoint(checkpoint_copy, layout)
    plain = replace_weights(Path(shutil.copytree(compact_checkpoint, tmp_path / "plain")), meant)
    exact = make_recipe("int4", "cpu", method="nearest", activations="float").quantizers["decoder"]
    decoder_alone = Recipe("int4", "float32", {"decoder": exact})
    packages = [tmp_path / "dequantized", tmp_path / "meant", tmp_path / "repacked"]
    dequantized = export_package(Checkpoint(checkpoint_copy), packages[0], FP32)
    expected = export_package(Checkpoint(plain), packages[1], FP32)
    export_package(Checkpoint(checkpoint_copy), packages[2], decoder_alone)
    assert dequantized.files["decoder.onnx.data"] == expected.files["decoder.onnx.data"]
    assert dequantized.recipe["checkpoint"]["method"] == f"{layout.method}-checkpoint"

    prompt = Prompt(compact.arrays["one_image__ids"].clip(0))
    logits, tokens = [], []
    for package in packages[1:]:
        with phi_edge.load_model(package) as model:
            logits.append(model.start(prompt).logits)
            tokens.append([event.token_id for event in model.generate(prompt, max_tokens=8)])
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-4)
    assert tokens[1] == tokens[0]


def test_calibration_leaves_the_decoder_as_it_is(checkpoint_copy: Path, tmp_path: Path) -> None:
    meant = write_checkpoint(checkpoint_copy, GPTQ)
    checkpoint = Checkpoint(checkpoint_copy)
    samples = encode_samples(checkpoint, [Sample("Hello there", "Good morning.")])
    packages = [tmp_path / "nearest", tmp_path / "gptq"]
    export_package(checkpoint, packages[0], INT4)
    recipe = make_recipe("int4", "cpu", method="gptq")
    export_package(checkpoint, packages[1], recipe, samples=samples)
    nearest, calibrated = map(read_decoder, packages)
    assert not np.array_equal(nearest.pop(HEAD)[0], calibrated.pop(HEAD)[0])
    for name, (weight, _) in calibrated.items():
        np.testing.assert_array_equal(weight, meant[name])


def test_the_order_in_an_awq_word() -> None:
    """As `awq/utils/packing_utils.py` of AutoAWQ undoes it."""
    layout = PackedLayout("awq", 4, 16)
    qweight = np.full((16, 1), 0x76543210, np.int32)
    qzeros, scales = np.zeros((1, 1), np.int32), np.ones((1, 8), np.float16)
    weight = layout.repack(qweight, qzeros, scales).dequantize(layout.bits)
    assert weight[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_biases_of_zero_are_none(checkpoint_copy: Path, tmp_path: Path) -> None:
    """AutoGPTQ wrote them for every layer."""
    write_checkpoint(checkpoint_copy, GPTQ)
    tensors = load_file(checkpoint_copy / WEIGHTS)
    biases = {
        name.replace("scales", "bias"): np.zeros(tensor.shape[1], np.float16)
        for name, tensor in tensors.items()
        if name.endswith(".scales")
    }
    without = export_package(Checkpoint(checkpoint_copy), tmp_path / "without", INT4)
    save_file(tensors | biases, checkpoint_copy / WEIGHTS)
    zeros = export_package(Checkpoint(checkpoint_copy), tmp_path / "zeros", INT4)
    assert zeros.files["decoder.onnx.data"] == without.files["decoder.onnx.data"]
    biases[f"{LINEAR}.bias"][3] = 1
    save_file(tensors | biases, checkpoint_copy / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"{LINEAR}\.weight has a bias"):
        Checkpoint(checkpoint_copy)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"bits": 3}, "to 3 bits, and not to 4 or 8"),
        (
            {"quant_method": "awq", "checkpoint_format": "gemm", "bits": 8},
            "to 8 bits, and not to 4",
        ),
        ({"group_size": 48}, "in groups of 48"),
        ({"group_size": -1}, "in groups of -1"),
        ({"group_size": None}, "in groups of None"),
        ({"group_size": 128}, r"\[192, 64\] does not divide into groups of 128"),
        ({"quant_method": "bitsandbytes"}, "by bitsandbytes"),
        ({"quant_method": None}, "by None"),
        ({"checkpoint_format": "marlin"}, "by gptq marlin"),
        ({"quant_method": "awq", "checkpoint_format": "gemv"}, "by awq gemv"),
    ],
)
def test_layouts_that_cannot_be_repacked(
    checkpoint_copy: Path, config: dict[str, Any], reason: str
) -> None:
    layout = GPTQ._replace(config=GPTQ.config | config)
    write_checkpoint(checkpoint_copy, layout)
    with pytest.raises(CheckpointError, match=f"{reason}.*export from the original weights"):
        Checkpoint(checkpoint_copy)


@pytest.mark.parametrize(
    ("value", "reason"), [(["gptq"], "not a JSON object"), (None, "no quantization_config")]
)
def test_quantized_weights_want_a_quantization_config(
    checkpoint_copy: Path, value: object, reason: str
) -> None:
    write_checkpoint(checkpoint_copy, GPTQ)
    config = json.loads((checkpoint_copy / "config.json").read_text())
    config["quantization_config"] = value
    (checkpoint_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(checkpoint_copy)


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("g_idx", lambda a: a[::-1].copy(), r"down_proj\.weight .* order of its activations"),
        ("qzeros", lambda _: None, rf"missing: {LINEAR}\.qzeros"),
        ("g_idx", lambda _: None, rf"missing: {LINEAR}\.g_idx"),
        ("qweight", lambda a: a[:5].copy(), rf"wrong shape: {LINEAR}\.qweight"),
        ("qweight", lambda a: a.astype(np.int64), r"wrong type: .*qweight is I64 instead of I32"),
        ("scales", lambda a: a.astype(np.int32), r"wrong type: .*scales is I32"),
        # Found when they are read.
        ("scales", lambda a: a * np.float16(np.inf), "scales are infinite"),
        ("qzeros", lambda a: a | np.int32(0xF0), "zero points of 0"),
        ("qzeros", lambda a: a + np.int32(0x11111111), "symmetric, and not all zero points are 8"),
    ],
)
def test_damaged_matrices(
    checkpoint_copy: Path,
    tmp_path: Path,
    part: str,
    change: Callable[[npt.NDArray[Any]], npt.NDArray[Any] | None],
    reason: str,
) -> None:
    write_checkpoint(checkpoint_copy, GPTQ)
    tensors = load_file(checkpoint_copy / WEIGHTS)
    changed = change(tensors.pop(f"{LINEAR}.{part}"))
    if changed is not None:
        tensors[f"{LINEAR}.{part}"] = changed
    save_file(tensors, checkpoint_copy / WEIGHTS)
    with pytest.raises(CheckpointError, match=reason):
        export_package(Checkpoint(checkpoint_copy), tmp_path / "package", INT4)
    assert not (tmp_path / "package").exists()


def test_truncated_file(checkpoint_copy: Path) -> None:
    write_checkpoint(checkpoint_copy, AWQ)
    path = checkpoint_copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        Checkpoint(checkpoint_copy)


def test_adapters_want_the_original_weights(checkpoint_copy: Path, tmp_path: Path) -> None:
    write_checkpoint(checkpoint_copy, AWQ)
    with pytest.raises(CheckpointError, match="no adapter can be merged"):
        Checkpoint(checkpoint_copy, tmp_path)
