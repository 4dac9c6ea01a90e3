"""Checkpoints and packages that the tests share.

`golden/` is a tiny checkpoint with arrays that Microsoft's own modelling code computed from it.
A larger set of the same kind, with the real tokenizer, is read from `../shared` where present.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from PIL import Image
from tokenizers import Tokenizer

import phi_edge
from benchmarks.synthetic_checkpoint import write_tokenizer
from export import Checkpoint, export_package
from phi_edge.api.service import ChatService
from phi_edge.engine.ort import OrtEngine
from phi_edge.image.files import open_image
from quantize import make_recipe

from .helpers.engines import WatchedEngine
from .helpers.requests import body

GOLDEN = Path(__file__).parent / "golden"
# What names another model than the tests ask for.
os.environ.pop("PHI_EDGE_MODEL", None)
SHARED = Path(__file__).parents[2] / "shared"
DEV = SHARED / "golden" / "dev"
REFERENCE_FILES = SHARED / "reference" / "phi3_vision_checkpoint_files"

Arrays = dict[str, npt.NDArray[Any]]

# The same examples every time; `HYPOTHESIS_PROFILE=thorough` tries many others.
settings.register_profile("quick", max_examples=40, derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=3000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


class GoldenSet:
    """One set of golden data: manifest, arrays and images."""

    def __init__(self, folder: Path) -> None:
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        self.arrays: Arrays = {}
        for file in folder.glob("*.npz"):
            with np.load(file) as arrays:
                prefix = "full/" if file.stem == "preprocess_full" else ""
                self.arrays |= {prefix + name: arrays[name] for name in arrays.files}
        self._images = folder / "images"

    def image(self, name: str) -> Image.Image:
        return open_image(self._images / f"{name}.png")

    def images(self, names: list[str] | None) -> list[Image.Image]:
        return [self.image(name) for name in names or []]


@pytest.fixture(scope="session")
def compact() -> GoldenSet:
    return GoldenSet(GOLDEN)


@pytest.fixture(scope="session")
def dev() -> GoldenSet:
    if not DEV.is_dir():
        pytest.skip("the large golden set is not at ../shared")
    return GoldenSet(DEV / "cases")


@pytest.fixture(scope="session")
def compact_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint with a tokenizer, which the golden set leaves out."""
    folder = tmp_path_factory.mktemp("checkpoint") / "compact"
    shutil.copytree(GOLDEN / "checkpoint", folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def checkpoint(compact_checkpoint: Path) -> Checkpoint:
    return Checkpoint(compact_checkpoint)


@pytest.fixture
def checkpoint_copy(compact_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return Path(shutil.copytree(compact_checkpoint, tmp_path / "checkpoint"))


Exporter = Callable[..., Path]


@pytest.fixture(scope="module", params=["tiny", "phi3"])
def tokenizer(request: pytest.FixtureRequest, model: phi_edge.Model) -> Tokenizer:
    """That of the compact checkpoint, and the real one."""
    if request.param == "tiny":
        return model.tokenizer
    if not REFERENCE_FILES.is_dir():
        pytest.skip("the real tokenizer is not at ../shared")
    return Tokenizer.from_file(str(REFERENCE_FILES / "tokenizer.json"))


@pytest.fixture(scope="session")
def export_compact(compact_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """Export the compact checkpoint; each precision and provider once a session."""
    folder = tmp_path_factory.mktemp("packages")

    def export(precision: str, provider: str = "cpu") -> Path:
        target = folder / f"{precision}-{provider}"
        if not target.exists():
            recipe = make_recipe(precision, provider, method="nearest", block_size=32)
            export_package(Checkpoint(compact_checkpoint), target, recipe, provider=provider)
        return target

    return export


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Copies of the packages in `published/` that can be run; each once a session."""
    from .helpers.published import copy_published

    folder = tmp_path_factory.mktemp("published")
    return functools.cache(lambda name: copy_published(name, folder / name))


@pytest.fixture
def published_copy(published: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of one of them, for the CPU, that a test may damage."""
    return Path(shutil.copytree(published("tiny-3.5-cpu"), tmp_path / "package"))


@pytest.fixture(scope="session")
def compact_fp32(export_compact: Exporter) -> Path:
    return export_compact("fp32")


@pytest.fixture(scope="session")
def model(compact_fp32: Path) -> Iterator[phi_edge.Model]:
    """The fp32 package of the compact checkpoint."""
    with phi_edge.load_model(compact_fp32) as model:
        yield model


@pytest.fixture(scope="session")
def engine(compact_fp32: Path, model: phi_edge.Model) -> OrtEngine:
    """An engine of the same package: what it starts goes on from nothing."""
    return OrtEngine(compact_fp32, model.manifest, "cpu")


@pytest.fixture
def own_engine(compact_fp32: Path, model: phi_edge.Model) -> WatchedEngine:
    """Another, which counts its work, and in which a test may replace what it likes."""
    return WatchedEngine(compact_fp32, model.manifest, "cpu")


@pytest.fixture
def fresh(own_engine: WatchedEngine, model: phi_edge.Model) -> Iterator[phi_edge.Model]:
    """A model with nothing cached, on an engine that a test may change."""
    with phi_edge.Model(model.manifest, model.tokenizer, own_engine) as fresh:
        yield fresh


def count_cached(
    model: phi_edge.Model, prompt: phi_edge.Prompt, caplog: pytest.LogCaptureFixture
) -> int:
    """How many tokens of a prompt the model need not prefill; all of them are kept after that."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "phi_edge.cache.pool"), model.start(prompt):
        found = re.search(r"(\d+) of \d+ prompt tokens are cached", caplog.text)
    return int(found[1]) if found else 0


@pytest.fixture(scope="session")
def service(model: phi_edge.Model) -> ChatService:
    return ChatService(model)


@pytest.fixture(scope="session")
def long(service: ChatService) -> dict[str, Any]:
    """A request that still runs when the test looks: it says "k" again and again."""
    letter = str(service.model.tokenizer.token_to_id("k"))
    return body(max_tokens=50_000, stream=True, logit_bias={letter: 100})


@pytest.fixture
def package_copy(compact_fp32: Path, tmp_path: Path) -> Path:
    """A copy of the fp32 package that a test may damage."""
    return Path(shutil.copytree(compact_fp32, tmp_path / "package"))


@pytest.fixture(scope="session")
def dev_model(
    dev: GoldenSet,  # noqa: ARG001 - skips where the set is absent
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[phi_edge.Model]:
    """The fp32 package of the large golden set's checkpoint."""
    target = tmp_path_factory.mktemp("packages") / "dev"
    export_package(Checkpoint(DEV / "checkpoint"), target, make_recipe("fp32", "cpu"))
    with phi_edge.load_model(target) as model:
        yield model
