"""Small packages with the layouts of published ones; see `tests/published/README.md`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from tokenizers import Tokenizer

import phi_edge
from benchmarks.synthetic_checkpoint import write_tokenizer
from phi_edge import PackageError, package
from phi_edge.cache.disk import DiskCache
from phi_edge.engine.ort_published import PublishedEngine
from phi_edge.image.crops import ImageCrops, preprocess
from phi_edge.package import DECODER, EMBEDDING, GENAI_CONFIG_FILE, VISION, ModelConfig
from tests.conftest import GOLDEN, SHARED

from .engines import WatchedEngine
from .packages import edit_json
from .sequences import random_ids

FOLDER = Path(__file__).parents[1] / "published"
CPU, GPU, UNIFIED, OLD = "tiny-3.5-cpu", "tiny-3.5-gpu", "tiny-3-unified", "tiny-3-cpu-old"
# The longest sequence with the short RoPE factors, and the longest of all.
BOUNDARY, CONTEXT = 64, 512

_STEMS = {VISION: "vision_encoder", EMBEDDING: "prepare_inputs_embeds", DECODER: "model"}


class WatchedPublishedEngine(WatchedEngine, PublishedEngine):
    """Counts its work."""


def watched_engine(folder: Path) -> WatchedPublishedEngine:
    return WatchedPublishedEngine(folder, package.read_package(folder), "cpu")


def large_package() -> Path:
    """One with the real boundary, tokenizer and ends of answers; skips the test without it."""
    folder = SHARED / "published" / "phi-3.5-cpu"
    if not folder.is_dir():
        pytest.skip("the large package is not at ../shared")
    return folder


def model_on(
    engine: WatchedPublishedEngine, folder: Path, disk_cache: Path | None = None
) -> phi_edge.Model:
    """A model with nothing cached in memory, on an engine of its package."""
    manifest = package.read_package(folder)
    tokenizer = Tokenizer.from_file(str(folder / package.TOKENIZER_FILE))
    disk = DiskCache(disk_cache, manifest, "cpu") if disk_cache else None
    return phi_edge.Model(manifest, tokenizer, engine, disk_cache=disk)


def copy_published(name: str, target: Path) -> Path:
    """Copy a package, with a tokenizer, and tokens that end an answer in its vocabulary."""
    shutil.copytree(FOLDER / name, target)
    write_tokenizer(target)
    ends = {"eos_token_id": 2, "pad_token_id": 0}
    edit_json(target / GENAI_CONFIG_FILE, lambda config: config["model"].update(ends))
    return target


def graph_file(folder: Path, role: str) -> Path:
    config = json.loads((folder / GENAI_CONFIG_FILE).read_text())
    return folder / str(config["model"][role]["filename"])


def data_file(folder: Path, role: str = DECODER) -> Path:
    graph = graph_file(folder, role)
    return graph.with_name(f"{graph.name}.data")


def change_role(folder: Path, role: str, **fields: object) -> None:
    path = folder / package.GENAI_CONFIG_FILE
    edit_json(path, lambda config: config["model"][role].update(fields))


def edit_decoder(folder: Path, **fields: object) -> None:
    change_role(folder, DECODER, **fields)


def edit_model(folder: Path, **fields: object) -> None:
    edit_json(folder / package.GENAI_CONFIG_FILE, lambda config: config["model"].update(fields))


def check_refused(folder: Path, said: str) -> None:
    """By whatever reads it, with an error that does not hold another."""
    for read in (package.read_package, phi_edge.load_model):
        with pytest.raises(PackageError, match=said) as caught:
            read(folder)
        assert "PackageError" not in str(caught.value)


def edit_graph(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change a graph; its weights stay in their file."""
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def rename_data(model: onnx.ModelProto, name: str) -> None:
    """Have a graph take its weights from another file."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name


def multiply_in_floats(model: onnx.ModelProto) -> None:
    """Have a decoder multiply as it says, rather than in 8 bits.

    There, the last bit of an activation may turn its rounding over, so that what is computed in
    another order is the same up to 0.02 alone.
    """
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1


def move_graph(path: Path, target: Path, suffix: str) -> None:
    """Give a graph another name, and its weights that name with a suffix."""
    data = path.with_name(f"{path.name}.data")
    path.rename(target)
    data.rename(target.with_name(target.name + suffix))
    edit_graph(target, lambda model: rename_data(model, target.name + suffix))


def to_transformers_js(folder: Path, suffix: str = "_q4") -> Path:
    """Turn a package into one with the layout of transformers.js."""
    (folder / "onnx").mkdir()
    for role, stem in _STEMS.items():
        target = folder / "onnx" / f"{stem}{suffix}.onnx"
        move_graph(graph_file(folder, role), target, "_data")
    (folder / GENAI_CONFIG_FILE).unlink()
    (folder / package.PROCESSOR_CONFIG_FILE).unlink()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(GOLDEN / "checkpoint" / name, folder)
    length = {"max_position_embeddings": CONTEXT}
    edit_json(folder / "config.json", lambda config: config.update(length))
    return folder


def keep_few_logits(model: onnx.ModelProto) -> None:
    """Give a decoder the input `num_logits_to_keep`: logits of so many positions, the last ones."""
    graph = model.graph
    (head,) = [node for node in graph.node if "logits" in node.output]
    number = onnx.helper.make_tensor_value_info("num_logits_to_keep", onnx.TensorProto.INT64, [])
    graph.input.append(number)
    constants = {"one": [1], "end": [2**62]}
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.int64), f"keep/{name}")
        for name, value in constants.items()
    )
    make_node = onnx.helper.make_node
    slicing = [
        make_node("Neg", ["num_logits_to_keep"], ["keep/negative"]),
        make_node("Reshape", ["keep/negative", "keep/one"], ["keep/start"]),
        make_node(
            "Slice", [head.input[0], "keep/start", "keep/end", "keep/one"], ["keep/hidden_states"]
        ),
    ]
    head.input[0] = "keep/hidden_states"
    place = list(graph.node).index(head)
    for node in reversed(slicing):
        graph.node.insert(place, node)
    (logits,) = [output for output in graph.output if output.name == "logits"]
    logits.type.tensor_type.shape.dim[1].dim_param = "num_logits"


def to_hub_cache(folder: Path, root: Path, subfolder: str, revision: str = "a" * 40) -> Path:
    """Move a package to where the Hugging Face hub's cache has it; gives the model's folder.

    Large files are named after their SHA-256, and small ones after Git's shorter digest.
    """
    model = root / "models--some--model"
    snapshot = model / "snapshots" / revision / subfolder
    (model / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        blob = model / "blobs" / (digest if ".onnx" in path.name else digest[:40])
        path.rename(blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return model


def wide_image(model: ModelConfig) -> ImageCrops:
    """An image of two crops and the global one; the context has no room for more."""
    image = Image.effect_noise((670, 300), 90).convert("RGB")
    return preprocess(image, 2, model.image_mean, model.image_std)


def with_slots(images: Sequence[ImageCrops]) -> phi_edge.Prompt:
    """A prompt of a few tokens around images."""
    parts = [random_ids(5)]
    for number, crops in enumerate(images, start=1):
        parts += [np.full(crops.num_tokens, -number), random_ids(5, seed=number)]
    return phi_edge.Prompt(np.concatenate(parts), tuple(images))
