"""A package has nothing loaded by onnxruntime-genai but itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phi_edge import PackageError, load_model, package
from phi_edge.package.genai_config import check_genai_config

from .conftest import Exporter

OPTIONS = '"session_options": {'


@pytest.mark.parametrize("provider", ["cpu", "cuda", "dml"])
def test_what_the_exporter_writes_is_allowed(export_compact: Exporter, provider: str) -> None:
    folder = export_compact("int4", provider)
    check_genai_config(folder, package.read_manifest(folder))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (OPTIONS, OPTIONS + '"custom_ops_library": "own.so",', "custom_ops_library"),
        # Twice: readers differ in which one they take.
        (OPTIONS, OPTIONS + '"custom_ops_library": "own.so"},' + OPTIONS, "custom_ops_library"),
        (OPTIONS, '"session_options": [], ' + OPTIONS, "session_options"),
        (
            '"provider_options": []',
            '"provider_options": [{"QNN": {"backend_path": "x"}}]',
            "provider_o",
        ),
        ('"provider_options": []', '"provider_options": 1', "provider_options"),
        ('"decoder.onnx"', '"../decoder.onnx"', r"filename '\.\./decoder\.onnx'"),
        ('"decoder.onnx"', "null", "filename None"),
        ('"decoder": {', '"decoder": {"pipeline": [{"a": {"filename": "x"}}],', "filename 'x'"),
        ('"search": {', '"ep_library": "own.so", "search": {', "ep_library"),
        ("{", "", "damaged"),
    ],
)
def test_what_would_load_more_is_refused(
    compact_fp32: Path, tmp_path: Path, old: str, new: str, named: str
) -> None:
    text = json.dumps(json.loads((compact_fp32 / package.GENAI_CONFIG_FILE).read_text()))
    assert old in text
    (tmp_path / package.GENAI_CONFIG_FILE).write_text(text.replace(old, new, 1))
    with pytest.raises(PackageError, match=named):
        check_genai_config(tmp_path, package.read_manifest(compact_fp32))


def test_the_engine_asks_first(package_copy: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")
    manifest = json.loads((package_copy / package.MANIFEST_FILE).read_text())
    del manifest["files"][package.GENAI_CONFIG_FILE]
    (package_copy / package.MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match=r"lists no genai_config\.json"):
        load_model(package_copy, engine="genai")
