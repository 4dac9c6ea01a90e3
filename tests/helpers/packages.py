"""Checkpoints and packages that a test changes, and what they are made of and for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
from safetensors.numpy import load_file, save_file

from phi_edge.evaluation.samples import Sample
from phi_edge.package import MANIFEST_FILE
from tests.conftest import GOLDEN

WEIGHTS = "model.safetensors"
Tensors = dict[str, Any]

# Precisions and providers that packages are exported for.
TARGETS = [
    (precision, provider)
    for provider in ("cpu", "cuda", "dml")
    for precision in ("fp32", "fp16", "int4")
    if (precision, provider) != ("fp32", "cuda")
]

# What exports of the compact checkpoint are calibrated with.
IMAGE = GOLDEN / "images" / "rgba_64x64.png"
SAMPLES = [Sample("Hello there", "Good morning."), Sample("What is it?", "A dot.", (IMAGE,))]


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(folder / MANIFEST_FILE, change)


def edit_weights(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def operators(path: Path) -> list[str]:
    """The operators of a graph in their order."""
    return [node.op_type for node in ir.load(path).graph]
