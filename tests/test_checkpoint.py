"""Checkpoints: what one must be, where it may come from, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from export import Checkpoint, export_package, find_checkpoint
from export.config import expected_tensors, read_config
from phi_edge import CheckpointError, CheckpointNotFoundError
from quantize import make_recipe

from .conftest import REFERENCE_FILES
from .helpers.packages import WEIGHTS, Tensors, edit_json, edit_weights

FP32 = make_recipe("fp32", "cpu")
NORM = "model.norm.weight"


def test_expected_tensors_are_those_of_the_published_index() -> None:
    if not REFERENCE_FILES.is_dir():
        pytest.skip("the published index is not at ../shared")
    index = json.loads((REFERENCE_FILES / "model.safetensors.index.json").read_text())
    expected = expected_tensors(read_config(REFERENCE_FILES))
    assert expected.keys() == index["weight_map"].keys()
    # bfloat16: two bytes a weight.
    total = sum(2 * int(np.prod(shape)) for shape in expected.values())
    assert total == index["metadata"]["total_size"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), rf"missing: {NORM} \[64\]"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "not known: extra"),
        (
            lambda t: t.update({NORM: t[NORM][:5]}),
            rf"wrong shape: {NORM} is \[5\] instead of \[64\]",
        ),
        (
            lambda t: t.update({NORM: t[NORM].astype(np.int32)}),
            rf"wrong type: {NORM} is I32 instead of BF16 or F16 or F32",
        ),
    ],
)
def test_bad_tensors(
    checkpoint_copy: Path, change: Callable[[Tensors], object], message: str
) -> None:
    edit_weights(checkpoint_copy, change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(checkpoint_copy)


def test_all_problems_are_in_one_error(checkpoint_copy: Path) -> None:
    def change(tensors: Tensors) -> None:
        del tensors[NORM]
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:1]
        tensors["extra"] = np.zeros(1, np.float32)

    edit_weights(checkpoint_copy, change)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(checkpoint_copy)
    assert all(name in str(caught.value) for name in (NORM, "lm_head.weight", "extra"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:1000],
        lambda content: content[:-1],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"{]" + content[10:],
        lambda _: b"",
    ],
)
def test_damaged_safetensors(checkpoint_copy: Path, damage: Callable[[bytes], bytes]) -> None:
    path = checkpoint_copy / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        Checkpoint(checkpoint_copy)


def test_infinite_weights(checkpoint_copy: Path, tmp_path: Path) -> None:
    """Found while writing; the tensor is named and no package is left."""

    def change(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].copy()
        tensors["lm_head.weight"][3, 3] = np.inf

    edit_weights(checkpoint_copy, change)
    for precision in ("fp32", "int4"):
        recipe = make_recipe(precision, "cpu", method="nearest")
        with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
            export_package(Checkpoint(checkpoint_copy), tmp_path / "out", recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_weights_too_large_for_fp16(checkpoint_copy: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[NORM] = np.full(64, 1e6, ml_dtypes.bfloat16)

    edit_weights(checkpoint_copy, change)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight .* FLOAT16 cannot hold"):
        export_package(Checkpoint(checkpoint_copy), tmp_path / "out", make_recipe("fp16", "cpu"))


def test_pickles_are_refused(checkpoint_copy: Path) -> None:
    (checkpoint_copy / WEIGHTS).rename(checkpoint_copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="convert them to safetensors"):
        Checkpoint(checkpoint_copy)


@pytest.mark.parametrize(
    "name",
    ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS],
)
def test_missing_file(checkpoint_copy: Path, name: str) -> None:
    (checkpoint_copy / name).unlink()
    with pytest.raises(CheckpointError, match="safetensors" if name == WEIGHTS else name):
        Checkpoint(checkpoint_copy)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "missing.safetensors"}, "missing.safetensors"),
        ({"a": "../model.safetensors"}, "not there"),
        (None, "no weight_map"),
    ],
)
def test_bad_index(checkpoint_copy: Path, weight_map: object, message: str) -> None:
    index = {"weight_map": weight_map}
    (checkpoint_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(checkpoint_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="llama"), "model_type is 'llama'"),
        (lambda c: c.pop("model_type"), "model_type is None"),
        (lambda c: c.pop("hidden_size"), "hidden_size"),
        (lambda c: c["rope_scaling"].update(type="yarn"), "rope_scaling type is 'yarn'"),
        (lambda c: c["rope_scaling"]["long_factor"].pop(), "16 short and 16 long factors"),
        (lambda c: c["embd_layer"].update(hd_transform_order="glb_sub"), "hd_transform_order"),
        (lambda c: c["img_processor"]["vision_config"].update(hidden_act="gelu"), "quick_gelu"),
        (lambda c: c["img_processor"]["vision_config"].update(image_size=224), "336 pixels"),
        (lambda c: c.update(num_attention_heads=3), "multiple of num_attention_heads"),
        (lambda c: c.update(max_position_embeddings=100), "max_position_embeddings"),
        (lambda c: c.update(rope_scaling=None), "incomplete"),
    ],
)
def test_bad_config(
    checkpoint_copy: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_json(checkpoint_copy / "config.json", change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(checkpoint_copy)


def test_config_without_vision_dimensions_is_vit_l(checkpoint_copy: Path) -> None:
    """As in the published config.json, which names the tower and leaves its size out."""
    edit_json(checkpoint_copy / "config.json", lambda c: c["img_processor"].pop("vision_config"))
    vision = read_config(checkpoint_copy).vision
    assert (vision.hidden_size, vision.num_hidden_layers, vision.grid) == (1024, 24, 24)


def test_bad_preprocessor_and_tokenizer(checkpoint_copy: Path, tmp_path: Path) -> None:
    edit_json(checkpoint_copy / "preprocessor_config.json", lambda c: c.pop("image_mean"))
    with pytest.raises(CheckpointError, match="image_mean"):
        export_package(Checkpoint(checkpoint_copy), tmp_path / "out", FP32)
    (checkpoint_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        export_package(Checkpoint(checkpoint_copy), tmp_path / "out", FP32)


def test_generation_config_names_the_end_tokens(checkpoint_copy: Path, tmp_path: Path) -> None:
    path = checkpoint_copy / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 344]}))
    manifest = export_package(Checkpoint(checkpoint_copy), tmp_path / "out", FP32)
    assert manifest.model.eos_token_ids[:2] == (7, 344)
    assert len(set(manifest.model.eos_token_ids)) == len(manifest.model.eos_token_ids)


def test_checkpoint_names(compact_checkpoint: Path, tmp_path: Path) -> None:
    assert find_checkpoint(str(compact_checkpoint)) == compact_checkpoint
    for name in ("missing", str(tmp_path / "missing"), "./a/b", "a/b/c"):
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint folder"):
            find_checkpoint(name)
    with pytest.raises(CheckpointNotFoundError):
        Checkpoint(tmp_path / "missing")


def test_hub_name_is_found_in_the_local_cache(
    compact_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    repository = tmp_path / "models--someone--phi"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(compact_checkpoint, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Checkpoint(find_checkpoint("someone/phi")).config.hidden_size == 64
    with pytest.raises(CheckpointNotFoundError, match="hub did not give it"):
        find_checkpoint("someone/else")
