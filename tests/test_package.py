"""The package format, and what loading makes of a damaged package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import phi_edge
from phi_edge import EngineError, PackageError, PackageNotFoundError, ProviderError, package
from phi_edge.engine.ort import OrtEngine

from .helpers.packages import edit_manifest


def test_manifest_survives_writing_and_reading(compact_fp32: Path, tmp_path: Path) -> None:
    manifest = package.read_manifest(compact_fp32)
    package.write_manifest(tmp_path, manifest)
    assert package.read_manifest(tmp_path) == manifest


def test_manifest_says_what_the_package_is(compact_fp32: Path) -> None:
    manifest = package.read_manifest(compact_fp32)
    assert (manifest.precision, manifest.provider) == ("fp32", "cpu")
    assert manifest.model.context_length == 131_072
    assert manifest.model.num_crops == 4
    assert manifest.model.cache_bytes_per_token == 2 * 2 * 64 * 4
    assert set(manifest.source) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert len(manifest.source_digest) == 64
    present = {path.name for path in compact_fp32.iterdir()}
    assert present == {package.MANIFEST_FILE, *manifest.files}


@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.onnx.data", "tokenizer.json"])
def test_changed_file(package_copy: Path, name: str) -> None:
    """One changed byte is found, and the file is named."""
    path = package_copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PackageError, match=f"{name} was changed"):
        phi_edge.load_model(package_copy, verify=True)


def test_large_files_are_hashed_on_request(
    package_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "ALWAYS_HASHED_BYTES", 10**5)
    path = package_copy / "decoder.onnx.data"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    manifest = package.read_manifest(package_copy)
    package.check_files(package_copy, manifest)
    with pytest.raises(PackageError, match=r"decoder\.onnx\.data was changed"):
        package.check_files(package_copy, manifest, verify=True)


def test_truncated_and_missing_files_are_all_named(package_copy: Path) -> None:
    (package_copy / "vision.onnx").unlink()
    with (package_copy / "decoder.onnx.data").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(PackageError, match=r"decoder\.onnx\.data has 100 bytes") as caught:
        phi_edge.load_model(package_copy)
    assert "vision.onnx is missing" in str(caught.value)


def test_a_link_out_of_the_package(package_copy: Path, tmp_path: Path) -> None:
    """Same content or not: what it leads to may change, and is not the package's to give away."""
    path = package_copy / "decoder.onnx.data"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match=r"decoder\.onnx\.data is a link to a file outside"):
        phi_edge.load_model(package_copy)


def test_a_link_to_the_package_itself(package_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(package_copy, target_is_directory=True)
    phi_edge.load_model(tmp_path / "link").close()


def test_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageNotFoundError, match="phi-edge export"):
        phi_edge.load_model(tmp_path)
    with pytest.raises(FileNotFoundError):
        phi_edge.load_model(tmp_path / "missing")


def test_newer_format(package_copy: Path) -> None:
    edit_manifest(package_copy, lambda manifest: manifest.update(format_version=3))
    with pytest.raises(PackageError, match=r"package format 3, and this version .* reads 2"):
        phi_edge.load_model(package_copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest["model"].pop("head_size"),
        lambda manifest: manifest["model"].update(surprise=1),
        lambda manifest: manifest["files"].update({"decoder.onnx": {"size": 1}}),
        lambda manifest: manifest["files"].update({"../x": {"size": 1, "sha256": ""}}),
        lambda manifest: manifest["files"].update({"..\\x": {"size": 1, "sha256": ""}}),
        lambda manifest: manifest["files"].pop("decoder.onnx"),
        lambda manifest: manifest.update(model=None),
    ],
)
def test_damaged_manifest(package_copy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit_manifest(package_copy, change)
    with pytest.raises(PackageError, match="damaged"):
        phi_edge.load_model(package_copy)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_manifest_that_is_no_json_object(package_copy: Path, content: bytes) -> None:
    (package_copy / package.MANIFEST_FILE).write_bytes(content)
    with pytest.raises(PackageError):
        phi_edge.load_model(package_copy)


def test_unknown_provider(compact_fp32: Path) -> None:
    with pytest.raises(ProviderError, match="choose one of cpu, cuda, dml"):
        phi_edge.load_model(compact_fp32, provider="tpu")


def test_provider_that_is_not_installed(compact_fp32: Path) -> None:
    with pytest.raises(ProviderError, match=r"pip install 'phi-edge\[cuda\]'"):
        phi_edge.load_model(compact_fp32, provider="cuda")


def test_without_onnxruntime(compact_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ProviderError, match=r"pip install 'phi-edge\[cpu\]'"):
        phi_edge.load_model(compact_fp32)


def test_closed_model(fresh: phi_edge.Model, own_engine: OrtEngine) -> None:
    with fresh as model:
        pass
    model.close()
    assert not hasattr(own_engine, "decoder"), "the graphs are freed"
    with pytest.raises(EngineError, match="closed"):
        model.start(model.encode_prompt("Hi"))
