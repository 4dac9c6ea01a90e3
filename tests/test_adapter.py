"""LoRA adapters, against weights that are merged apart from the exporter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from export import Checkpoint, export_package
from phi_edge.errors import CheckpointError
from quantize import make_recipe

RANK = 3
# The names of Phi-3.5-vision's fine-tuning recipe: the decoder's four layers, and the projector.
TARGETS = [
    "model.layers.0.self_attn.qkv_proj",
    "model.layers.1.self_attn.o_proj",
    "model.layers.0.mlp.gate_up_proj",
    "model.layers.1.mlp.down_proj",
    "model.vision_embed_tokens.img_projection.0",
    "lm_head",
]
Arrays = dict[str, npt.NDArray[np.float32]]


def make_factors(checkpoint: Path) -> Arrays:
    rng = np.random.default_rng(0)
    shapes = Checkpoint(checkpoint).tensors
    factors = {}
    for target in TARGETS:
        out_features, in_features = shapes[f"{target}.weight"].shape
        name = f"base_model.model.{target}"
        factors[f"{name}.lora_A.weight"] = rng.standard_normal((RANK, in_features), np.float32)
        factors[f"{name}.lora_B.weight"] = rng.standard_normal((out_features, RANK), np.float32)
    return factors


def write_adapter(folder: Path, factors: Arrays, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none", "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    return folder


@pytest.mark.parametrize(("config", "scale"), [({}, 2.0), ({"use_rslora": True}, 6 / 3**0.5)])
def test_the_package_is_that_of_the_merged_checkpoint(
    compact_checkpoint: Path,
    checkpoint_copy: Path,
    tmp_path: Path,
    config: dict[str, Any],
    scale: float,
) -> None:
    factors = make_factors(compact_checkpoint)
    adapter = write_adapter(tmp_path / "adapter", factors, **config)
    (file,) = checkpoint_copy.glob("*.safetensors")
    weights = {name: array.astype(np.float32) for name, array in load_file(file).items()}
    for target in TARGETS:
        a, b = (factors[f"base_model.model.{target}.lora_{part}.weight"] for part in "AB")
        weights[f"{target}.weight"] += np.float32(scale) * (b @ a)
    save_file(weights, file)

    recipe = make_recipe("fp32", "cpu")
    manifests = [
        export_package(checkpoint, tmp_path / name, recipe)
        for name, checkpoint in (
            ("adapted", Checkpoint(compact_checkpoint, adapter)),
            ("merged", Checkpoint(checkpoint_copy)),
            ("plain", Checkpoint(compact_checkpoint)),
        )
    ]
    adapted, merged, plain = (
        {name: entry for name, entry in manifest.files.items() if name.endswith(".data")}
        for manifest in manifests
    )
    assert adapted == merged
    assert adapted["decoder.onnx.data"] != plain["decoder.onnx.data"]
    assert adapted["vision.onnx.data"] != plain["vision.onnx.data"]
    assert set(manifests[0].source) - set(manifests[2].source) == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"lm_head": 1}}, "rank_pattern"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"r": 0}, "no usable r"),
        ({"lora_alpha": None}, "no usable r"),
    ],
)
def test_adapters_of_other_kinds(
    compact_checkpoint: Path, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    adapter = write_adapter(tmp_path, make_factors(compact_checkpoint), **config)
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(compact_checkpoint, adapter)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("base_model.model.lm_head.lora_A.weight", (RANK, 7), "does not fit"),
        ("base_model.model.lm_head.lora_B.weight", (7, RANK), "does not fit"),
        ("base_model.model.model.layers.9.mlp.down_proj.lora_A.weight", (RANK, 7), "no weight"),
        ("base_model.model.model.norm.lora_B.weight", (7, RANK), "not known"),
        ("base_model.model.lm_head.weight", (7, RANK), "not known"),
    ],
)
def test_adapters_of_other_checkpoints(
    compact_checkpoint: Path, tmp_path: Path, name: str, shape: tuple[int, int], reason: str
) -> None:
    factors = make_factors(compact_checkpoint) | {name: np.ones(shape, np.float32)}
    adapter = write_adapter(tmp_path, factors)
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(compact_checkpoint, adapter)


def test_folders_that_are_no_adapters(compact_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        Checkpoint(compact_checkpoint, tmp_path)
    adapter = write_adapter(tmp_path, {})
    with pytest.raises(CheckpointError, match="it is empty"):
        Checkpoint(compact_checkpoint, adapter)
