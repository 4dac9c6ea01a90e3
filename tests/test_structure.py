"""Rules about the code itself: who may import whom, what is public, what is in the wheel."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import phi_edge

from .helpers.imports import circles, import_graph, imported, module_files

ROOT = Path(__file__).parents[1]
STANDARD = set(sys.stdlib_module_names)
RUNTIME = STANDARD | {"phi_edge", "numpy", "PIL", "tokenizers", "typing_extensions"}
RUNTIME |= {"llguidance", "platformdirs", "pydantic"}

# Folder or file -> top-level modules that it may import.
ALLOWED = {
    "phi_edge": RUNTIME | {"click", "rich"},
    "phi_edge/package": STANDARD | {"phi_edge"},
    "phi_edge/engine/providers.py": STANDARD | {"phi_edge"},
    "phi_edge/errors.py": STANDARD,
    "phi_edge/server": STANDARD
    | {"phi_edge", "prometheus_client", "pydantic", "starlette"}
    | {"uvicorn"},
    "phi_edge/transports": STANDARD | {"phi_edge", "azure", "httpx", "typing_extensions"},
    "quantize": STANDARD | {"phi_edge", "numpy", "threadpoolctl"},
    "export/packed.py": STANDARD | {"numpy"},
    "export": STANDARD
    | {"phi_edge", "numpy", "ml_dtypes", "onnx_ir", "onnxscript", "safetensors", "tokenizers"}
    | {"huggingface_hub"},
}


MODULES = module_files(ROOT, ["phi_edge", "export", "quantize"])


def imports(path: Path) -> Iterator[str]:
    """Absolute imports of a module, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def test_no_modules_import_one_another() -> None:
    """Not for types alone either, nor inside of functions."""
    assert circles(import_graph(MODULES)) == []


def test_circles_are_found(tmp_path: Path) -> None:
    sources = {
        "__init__": "from .first import a",
        "first": "def a():\n    from .inner import second",
        "inner/__init__": "from p.inner.second import c",
        "inner/second": "if TYPE_CHECKING:\n    from ..first import a",
        "third": "from p import first",
        "fourth": "import p.third",
    }
    for name, source in sources.items():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / f"{name}.py").write_text(source)
    files = module_files(tmp_path, ["p"])
    assert import_graph(files)["p.third"] == {"p.first"}
    assert import_graph(files)["p.fourth"] == {"p.third"}
    assert circles(import_graph(files)) == [["p.first", "p.inner.second"]]
    (tmp_path / "p" / "third.py").write_text("from . import a")
    (tmp_path / "p" / "first.py").write_text("from . import third")
    assert circles(import_graph(files)) == [["p", "p.first", "p.third"]]


def test_tests_take_nothing_from_one_another() -> None:
    """What several need is in `tests/helpers` or `tests/conftest.py`."""
    for module, path in module_files(ROOT, ["tests"]).items():
        for source, name in imported(module, path):
            parts = f"{source}.{name}".split(".")
            is_test = parts[0] == "tests" and any(part.startswith("test_") for part in parts)
            assert not is_test, f"{module} imports {source} {name}"


@pytest.mark.parametrize("place", ALLOWED)
def test_imports(place: str) -> None:
    path = ROOT / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    # A folder inside has rules of its own.
    inner = [ROOT / other for other in ALLOWED if other.startswith(f"{place}/")]
    for file in files:
        if any(file.is_relative_to(other) for other in inner):
            continue
        found = {name.partition(".")[0] for name in imports(file)}
        assert found <= ALLOWED[place], file


def test_rich_and_click_stay_in_the_cli() -> None:
    for file in (ROOT / "phi_edge").rglob("*.py"):
        if file.parent.name != "cli" and file.name != "__main__.py":
            tops = {name.partition(".")[0] for name in imports(file)}
            assert not {"rich", "click"} & tops, file
            assert not any(f"{name}.".startswith("phi_edge.cli.") for name in imports(file)), file


def test_the_exporter_meets_the_runtime_in_formats_alone() -> None:
    """Calibration, which runs graphs, needs a little more."""
    format_alone = {
        f"phi_edge.{name}"
        for name in ("__version__", "errors", "package", "engine.providers", "text.prompt")
    }
    running = {
        f"phi_edge.{name}"
        for name in (
            "engine.session",
            "engine.vision",
            "evaluation.samples",
            "image.crops",
            "image.files",
        )
    }
    runners = ("calibration.py", "layerwise.py", "reference.py", "vision_calibration.py")
    for file in (ROOT / "export").glob("*.py"):
        runs = file.name in runners
        contract = format_alone | running if runs else format_alone
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "phi_edge":
                assert {f"phi_edge.{name.name}" for name in node.names} <= contract, file
        found = {name for name in imports(file) if name.startswith("phi_edge.")}
        assert found <= contract, file


def test_the_quantizers_meet_the_runtime_in_provider_records_alone() -> None:
    for file in (ROOT / "quantize").glob("*.py"):
        found = {name for name in imports(file) if name.startswith("phi_edge")}
        assert found <= {"phi_edge.engine.providers", "phi_edge.errors"}, file


def test_exported_names() -> None:
    public = {name for name in vars(phi_edge) if not name.startswith("_")}
    modules = {path.stem for path in (ROOT / "phi_edge").iterdir()} | {"annotations"}
    assert public - modules == set(phi_edge.__all__) - {"__version__"}
    assert phi_edge.__all__ == sorted(phi_edge.__all__)


def test_every_error_is_in_the_tree() -> None:
    errors = [value for value in vars(phi_edge).values() if isinstance(value, type)]
    errors = [error for error in errors if issubclass(error, Exception)]
    assert len(errors) == 16
    for error in errors:
        assert issubclass(error, phi_edge.PhiEdgeError)
        assert error.__name__ in (phi_edge.errors.__doc__ or "")


def test_import_needs_no_onnxruntime() -> None:
    """And no exporter: `import phi_edge` loads neither."""
    code = (
        "import sys, phi_edge, phi_edge.cli; "
        "print({'onnxruntime', 'onnxscript', 'rich', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_wheel(compact_checkpoint: Path, tmp_path: Path) -> None:
    """The wheel does the main job alone, with the tool folders inside the package."""
    pytest.importorskip("hatchling", reason="needs the extra `dev`")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"phi_edge"}
    assert wheel.stat().st_size < 8e6
    data = ["evaluation/sample_set/held_out/samples.jsonl", "engine/probes/float32.onnx"]
    data += ["engine/probes/float32.npz", "py.typed"]
    for name in ("export/exporter.py", "quantize/blockwise.py", "cli/main.py", *data):
        assert f"phi_edge/{name}" in names

    def run(*arguments: object) -> str:
        """The command as installed from the wheel, far from the checkout."""
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    where = run("-c", "import phi_edge.export.exporter as module; print(module.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path)
    assert run("-m", "phi_edge", "chat", "What do bees make?") == "Honey.\n"
    run("-m", "phi_edge", "export", compact_checkpoint, "package")
    assert run("-m", "phi_edge", "chat", "--model", "package", "--max-tokens", 3, "Hi").strip()
