"""Every file in `examples/` runs, as it is printed there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import phi_edge
from phi_edge.api.safety import BlockList
from phi_edge.api.service import ChatService

from .helpers.serving import serving

EXAMPLES = Path(__file__).parents[1] / "examples"
KEY = "sesame"


def run(
    command: list[str | Path], environment: dict[str, str], folder: Path = EXAMPLES
) -> list[str]:
    """The lines that a command prints."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines
    return lines


@pytest.fixture(scope="module")
def endpoint() -> Iterator[dict[str, str]]:
    with phi_edge.load_model() as model:
        service = ChatService(model, content_filters=[BlockList(["knife"])])
        with serving(service, api_key=KEY) as client:
            yield {
                "AZURE_INFERENCE_ENDPOINT": str(client.base_url).rstrip("/"),
                "AZURE_INFERENCE_CREDENTIAL": KEY,
            }


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("python/*.py")), ids=lambda path: path.stem)
def test_python(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHI_EDGE_MODEL", raising=False)
    check(path, run([sys.executable, path], {}))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("server/*.py")), ids=lambda path: path.stem)
def test_python_with_a_server(path: Path, endpoint: dict[str, str]) -> None:
    check(path, run([sys.executable, path], endpoint))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(endpoint: dict[str, str]) -> None:
    (answer,) = run(["sh", EXAMPLES / "server" / "rest.sh"], endpoint)
    assert '"logprobs": {"content": [{"token": ' in answer
    assert "7,000" in answer


@pytest.fixture(scope="module")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JavaScript examples with their packages."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node and npm")
    folder = tmp_path_factory.mktemp("examples") / "javascript"
    shutil.copytree(EXAMPLES / "javascript", folder)
    shutil.copy(EXAMPLES / "chart.png", folder.parent)
    run(["npm", "ci", "--no-audit", "--no-fund"], {}, folder)
    return folder


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("javascript/*.mjs")))
def test_javascript(name: str, javascript: Path, endpoint: dict[str, str]) -> None:
    check(javascript / name, run(["node", name], endpoint, javascript))


@pytest.fixture(scope="module")
def csharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C# examples, built."""
    if shutil.which("dotnet") is None:
        pytest.skip("needs the .NET SDK")
    folder = tmp_path_factory.mktemp("examples") / "csharp"
    shutil.copytree(EXAMPLES / "csharp", folder, ignore=shutil.ignore_patterns("bin", "obj"))
    shutil.copy(EXAMPLES / "chart.png", folder.parent)
    run(["dotnet", "build", "--nologo"], {}, folder)
    return folder


@pytest.mark.parametrize(
    "path",
    sorted(path for path in EXAMPLES.glob("csharp/*.cs") if path.stem != "Program"),
    ids=lambda path: path.stem,
)
def test_csharp(path: Path, csharp: Path, endpoint: dict[str, str]) -> None:
    check(path, run(["dotnet", "run", "--no-build", "--", in_words(path)], endpoint, csharp))


def in_words(path: Path) -> str:
    """The name of an example; C# files are called `LikeThis.cs`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path.stem).lower()


def check(path: Path, lines: list[str]) -> None:
    """Whether the output says what the bundled model knows."""
    text = "\n".join(lines)
    name = in_words(path)
    if name == "model_info":
        assert lines == [
            "Model name: phi-edge-tiny",
            "Model type: chat-completions",
            "Provider: phi_edge",
        ]
    elif name == "content_safety":
        assert lines[0].startswith("content_filter: ")
    elif name == "log_probabilities":
        # Every token with a probability near 1.
        assert len(lines) >= 8
        assert re.search(r"\b7\b.*(0\.9|1\.0|9\d|100)", text)
    elif name == "json_schema":
        assert lines == ["Paris"]
    else:
        asks_about_an_image = "chart" in path.read_text(encoding="utf-8")
        assert ("The green bar." if asks_about_an_image else "About 7,000.") in text
