"""Which kernels multiply in the vision tower, decided by what its layers are given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from typing_extensions import override

import phi_edge
from export import Checkpoint, encode_samples, export_package, vision_calibration
from export.journal import Journal
from export.vision import vision_linears
from export.vision_calibration import judge_vision
from phi_edge.image.crops import preprocess
from phi_edge.image.files import open_image
from quantize import BlockQuantizer, ChannelQuantizer, Recipe, make_recipe

from .helpers.packages import IMAGE, SAMPLES

GPTQ = make_recipe("int4", "cpu")
Array = npt.NDArray[Any]


def test_each_layer_is_judged_once(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = encode_samples(checkpoint, SAMPLES)
    journal = Journal(tmp_path / "journal", {})
    judged: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    class Judging(Recipe):
        @override
        def vision_errors(self, weight: Array, rows: Array) -> list[float]:
            judged.append((weight.shape, rows.shape))
            return [len(judged) / 100, 1.0]

    recipe = Judging(**vars(GPTQ))
    found = judge_vision(checkpoint, recipe, prompts, journal)
    linears = vision_linears(checkpoint.config)
    assert list(found) == [names[0] for names in linears]
    assert [value for value, _ in found.values()] == [(at + 1) / 100 for at in range(len(linears))]
    for (out_features, in_features), rows in judged:
        assert rows[1] == in_features
        assert rows[0] > 0
        assert out_features > 0
    width = checkpoint.config.vision.hidden_size
    assert judged[0][0] == (3 * width, width), "queries, keys and values are one product"

    monkeypatch.setattr(vision_calibration, "open_graph", None)
    assert judge_vision(checkpoint, recipe, prompts, journal) == found
    assert len(judged) == len(linears)


def test_layers_that_8_bits_would_harm_keep_more(checkpoint: Checkpoint, tmp_path: Path) -> None:
    errors = iter([[0.01, 0.01], [0.5, 0.01], [0.5, 0.5]])

    class Judged(Recipe):
        @override
        def vision_errors(self, weight: Array, rows: Array) -> list[float]:
            return next(errors, [0.0, 0.0])

    samples = encode_samples(checkpoint, SAMPLES)
    target = tmp_path / "package"
    manifest = export_package(checkpoint, target, Judged(**vars(GPTQ)), samples=samples)
    graph = ir.load(target / "vision.onnx").graph
    products = [node.op_type for node in graph if "MatMul" in node.op_type]
    assert products[:4] == ["DynamicQuantizeMatMul", "MatMulNBits", "MatMul", products[0]]
    assert Counter(products) == {products[0]: len(products) - 2, "MatMulNBits": 1, "MatMul": 1}
    assert len(manifest.recipe["vision_errors"]) == len(products)

    crops = preprocess(open_image(IMAGE), *checkpoint.image_settings())
    with phi_edge.load_model(target) as model:
        found = model.encode_image(crops)
    export_package(checkpoint, tmp_path / "exact", make_recipe("fp32", "cpu"))
    with phi_edge.load_model(tmp_path / "exact") as model:
        exact = model.encode_image(crops)
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


def test_choice() -> None:
    names = ("fast", "slow", "exact")
    recipe = GPTQ.for_vision(dict(zip(names, ([0.03, 0], [0.031, 0.03], [1, 1]), strict=True)))
    fast, slow, exact, other = (recipe.quantizer("vision", name) for name in (*names, "other"))
    assert isinstance(fast, ChannelQuantizer)
    assert isinstance(slow, BlockQuantizer)
    assert exact is None
    assert other == slow, "what was not judged"


def test_without_images_nothing_is_judged(checkpoint: Checkpoint, tmp_path: Path) -> None:
    prompts = encode_samples(checkpoint, SAMPLES[:1])
    assert judge_vision(checkpoint, GPTQ, prompts, Journal(tmp_path / "journal", {})) == {}
    assert make_recipe("int4", "cpu", method="search").vision == ()
