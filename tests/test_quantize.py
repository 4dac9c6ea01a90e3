"""Blockwise quantization: the arithmetic, and that the kernels compute the same."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxscript import GraphBuilder

from export.layers import CONTRIB, IR_VERSION, OPSET
from quantize import (
    Activations,
    BlockQuantizer,
    CalibratedQuantizer,
    QuantizedBlocks,
    dequantize,
    make_recipe,
)
from quantize.activations import round_activations

Array = npt.NDArray[np.float32]
QUANTIZERS = [
    BlockQuantizer(bits, block_size, symmetric=symmetric)
    for bits in (4, 8)
    for block_size in (16, 32, 128)
    for symmetric in (False, True)
]
SEARCHES = [dataclasses.replace(quantizer, method="search") for quantizer in QUANTIZERS[:6]]


def describe(quantizer: BlockQuantizer) -> str:
    return f"{quantizer.bits}bit-{quantizer.block_size}-{quantizer.symmetric}-{quantizer.method}"


def random_weight(shape: tuple[int, int]) -> Array:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def run_op(name: str, feed: Array | npt.NDArray[np.int64], **attributes: object) -> Array:
    """Run one operator of ONNX Runtime; array attributes become initializers, in order."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, "com.microsoft": 1})
    builder = GraphBuilder(graph)
    x = builder.input("x", ir.DataType.from_numpy(feed.dtype), feed.shape)
    arrays = attributes.pop("arrays")
    assert isinstance(arrays, list)
    values = [
        None if array is None else builder.initializer(ir.tensor(array), f"array_{i}")
        for i, array in enumerate(arrays)
    ]
    inputs = (values[0], x, *values[1:]) if name == "GatherBlockQuantized" else (x, *values)
    y = getattr(builder.op, name)(*inputs, **attributes, **CONTRIB)
    y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape([None] * 2)
    builder.add_output(y, "y")
    proto = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION))
    session = ort.InferenceSession(proto.SerializeToString())
    (result,) = session.run(["y"], {"x": feed})
    return np.asarray(result, np.float32)


@pytest.mark.parametrize("quantizer", QUANTIZERS + SEARCHES, ids=describe)
@pytest.mark.parametrize("in_features", [128, 96, 40])
def test_matmul_kernel_agrees(quantizer: BlockQuantizer, in_features: int) -> None:
    """`MatMulNBits` unpacks the very weights that `dequantize` gives, padded blocks too."""
    weight = random_weight((48, in_features))
    blocks = quantizer.quantize(weight)
    identity = np.eye(in_features, dtype=np.float32)
    unpacked = run_op(
        "MatMulNBits",
        identity,
        arrays=list(blocks),
        K=in_features,
        N=48,
        bits=quantizer.bits,
        block_size=quantizer.block_size,
    )
    expected = dequantize(blocks, quantizer.bits, in_features).T
    np.testing.assert_allclose(unpacked, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=describe)
def test_gather_kernel_agrees(quantizer: BlockQuantizer) -> None:
    blocks = quantizer.quantize(random_weight((10, 256)))
    rows = np.array([[3, 0], [9, 3]], np.int64)
    gathered = run_op(
        "GatherBlockQuantized",
        rows,
        arrays=[blocks.packed.reshape(10, -1), blocks.scales, blocks.zero_points],
        bits=quantizer.bits,
        block_size=quantizer.block_size,
        gather_axis=0,
        quantize_axis=1,
    )
    expected = dequantize(blocks, quantizer.bits, 256)[rows]
    np.testing.assert_allclose(gathered, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=describe)
def test_error_is_at_most_half_a_step(quantizer: BlockQuantizer) -> None:
    weight = random_weight((64, 256))
    blocks = quantizer.quantize(weight)
    error = np.abs(dequantize(blocks, quantizer.bits, 256) - weight)
    step = np.repeat(blocks.scales, quantizer.block_size, axis=1)
    # Rounding the zero point moves the ends of the range by up to half a step more.
    assert (error <= step * (0.5001 if quantizer.symmetric else 1.0001)).all()


def test_exact_values_stay_exact() -> None:
    """Zeros, and weights that lie on the grid."""
    weight = np.zeros((2, 32), np.float32)
    weight[1] = np.arange(32) % 16 - 3
    blocks = BlockQuantizer(4, 32, symmetric=False).quantize(weight)
    np.testing.assert_array_equal(dequantize(blocks, 4, 32), weight)


def test_packing_order() -> None:
    weight = np.arange(16, dtype=np.float32)[None]
    blocks = BlockQuantizer(4, 16, symmetric=False).quantize(weight)
    expected = [low | (low + 1) << 4 for low in range(0, 16, 2)]
    assert blocks.packed.tolist() == [[expected]]
    assert blocks.zero_points is not None
    assert blocks.zero_points.tolist() == [[0]]


def test_rows_do_not_depend_on_how_they_are_grouped() -> None:
    quantizer = BlockQuantizer(4, 32, symmetric=False)
    weight = random_weight((600, 1024))
    whole = quantizer.quantize(weight)
    part = quantizer.quantize(weight[300:301])
    np.testing.assert_array_equal(whole.packed[300], part.packed[0])
    np.testing.assert_array_equal(whole.scales[300], part.scales[0])


def test_float16_scales_are_made_up_for() -> None:
    weight = random_weight((16, 64)) * 1e-3
    blocks = BlockQuantizer(8, 32, symmetric=True, scale_dtype="float16").quantize(weight)
    np.testing.assert_array_equal(blocks.scales, blocks.scales.astype(np.float16))
    error = np.abs(dequantize(blocks, 8, 64) - weight)
    assert (error <= 0.501 * blocks.scales.max()).all()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_must_be_finite(bad: float, *, symmetric: bool) -> None:
    weight = random_weight((4, 32))
    weight[2, 5] = bad
    with pytest.raises(ValueError, match="infinite, undefined"):
        BlockQuantizer(4, 32, symmetric=symmetric).quantize(weight)


@pytest.mark.parametrize(("bits", "block_size"), [(3, 32), (4, 8), (4, 48)])
def test_parameters(bits: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        BlockQuantizer(bits, block_size, symmetric=True)  # type: ignore[arg-type]


def test_recipes() -> None:
    assert make_recipe("fp32", "cpu").quantizers == {}
    assert make_recipe("fp16", "cuda").float_dtype == "float16"
    assert make_recipe("int4", "cpu").float_dtype == "float32"
    assert make_recipe("int4", "dml").float_dtype == "float16"
    assert make_recipe("int4", "cpu").is_calibrated
    assert not make_recipe("int4", "cpu", method="search").is_calibrated
    levels: dict[Activations, int] = {"auto": 4, "int8": 4, "float": 1}
    for activations, level in levels.items():
        recipe = make_recipe("int4", "cpu", activations=activations, block_size=64)
        decoder = recipe.quantizer("decoder", "model.layers.0.mlp.down_proj")
        assert isinstance(decoder, BlockQuantizer)
        assert (decoder.accuracy_level, decoder.block_size) == (level, 64)
    with pytest.raises(ValueError, match="on the CPU alone"):
        make_recipe("int4", "cuda", activations="int8")
    with pytest.raises(ValueError, match="8 bits on the CPU alone"):
        make_recipe("int4", "cuda", bits={"lm_head": 8})
    with pytest.raises(ValueError, match="precision must be"):
        make_recipe("int3", "cpu")
    with pytest.raises(ValueError, match="int4 or fp16 for cuda, which has no kernels"):
        make_recipe("fp32", "cuda")


def test_some_layers_have_other_bits() -> None:
    recipe = make_recipe("int4", "cpu", bits={"model.layers.*.mlp.down_proj": 8, "lm_head": 8})
    names = ("model.layers.3.mlp.down_proj", "model.layers.3.mlp.gate_up_proj", "lm_head")
    quantizers = [recipe.quantizer("decoder", name) for name in names]
    assert [
        quantizer.bits for quantizer in quantizers if isinstance(quantizer, BlockQuantizer)
    ] == [8, 4, 8]


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (4, 128), (8, 32)])
def test_activations_are_rounded_as_the_kernel_does(
    bits: Literal[4, 8], block_size: int, num_rows: int
) -> None:
    in_features = 160  # the last block of 128 is not full
    rows = random_weight((num_rows, in_features))
    rows[:, 3] *= 100
    blocks = BlockQuantizer(bits, block_size, symmetric=False).quantize(
        random_weight((48, in_features))
    )
    shape = {"K": in_features, "N": 48, "bits": bits, "block_size": block_size}
    found = run_op("MatMulNBits", rows, arrays=list(blocks), accuracy_level=4, **shape)
    weight = dequantize(blocks, bits, in_features)
    np.testing.assert_allclose(
        found, round_activations(rows, block_size) @ weight.T, rtol=0, atol=1e-3
    )
    # Far from what exact activations give.
    assert np.abs(found - rows @ weight.T).max() > 0.1


def outlying_inputs(in_features: int) -> Array:
    """Rows in which one channel in fifty is fifty times as large as the rest."""
    rows = np.random.default_rng(0).standard_normal((200, in_features)).astype(np.float32)
    rows[:, ::50] *= 50
    return rows


@pytest.mark.parametrize("block_size", [32, 128])
def test_scaled_inputs_take_error_away(block_size: int) -> None:
    rows, weight = outlying_inputs(256), random_weight((64, 256))
    quantizer = CalibratedQuantizer(4, block_size, symmetric=False, accuracy_level=4)
    scales = quantizer.input_scales(weight, rows)
    assert scales is not None
    plain = quantizer.calibrate(weight, rows.T @ rows, rows)
    scaled_rows = rows / scales
    scaled = quantizer.calibrate(weight * scales, scaled_rows.T @ scaled_rows, scaled_rows)
    assert scaled.rounded_error < 0.8 * plain.rounded_error


def test_inputs_that_are_alike_are_not_scaled() -> None:
    quantizer = CalibratedQuantizer(4, 32, symmetric=False, accuracy_level=4)
    assert quantizer.input_scales(random_weight((64, 256)), random_weight((200, 256))) is None
    assert quantizer.input_scales(random_weight((64, 256)), np.zeros((2, 256), np.float32)) is None


@pytest.mark.parametrize(("bits", "level"), [(4, 4), (8, 1)])
def test_the_accuracy_level_follows_the_error(bits: Literal[4, 8], level: int) -> None:
    """Rounded activations are lost in the error of 4-bit weights, and stand out beside 8 bits."""
    rows, weight = random_weight((200, 256)), random_weight((64, 256))
    quantizer = CalibratedQuantizer(bits, 32, symmetric=False, accuracy_level=4, decides_level=True)
    found = quantizer.calibrate(weight, rows.T @ rows, rows)
    assert found.accuracy_level == level
    assert 0 < found.error < found.rounded_error
    always = dataclasses.replace(quantizer, decides_level=False)
    assert always.calibrate(weight, rows.T @ rows, rows).accuracy_level == 4


def test_dequantize_inverts_the_layout() -> None:
    blocks = QuantizedBlocks(
        packed=np.array([[[0x21], [0x43]]], np.uint8),
        scales=np.array([[1.0, 10.0]], np.float32),
        zero_points=np.array([[0x21]], np.uint8),
    )
    assert dequantize(blocks, 4, 4).tolist() == [[0, 1, 10, 20]]
