"""Every file in `examples/` runs, as it is printed there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from phi_edge.api.safety import BlockList
from phi_edge.api.service import ChatService

from .serving import serving

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
def endpoint(service: ChatService) -> Iterator[dict[str, str]]:
    filtered = ChatService(service.model, content_filters=[BlockList(["knife"])])
    with serving(filtered, api_key=KEY) as client:
        yield {
            "AZURE_INFERENCE_ENDPOINT": str(client.base_url).rstrip("/"),
            "AZURE_INFERENCE_CREDENTIAL": KEY,
        }


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("python/*.py")), ids=lambda path: path.stem)
def test_python(path: Path, compact_fp32: Path) -> None:
    lines = run([sys.executable, path], {"PHI_EDGE_MODEL": str(compact_fp32)})
    check(path.stem, lines)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("server/*.py")), ids=lambda path: path.stem)
def test_python_with_a_server(path: Path, endpoint: dict[str, str]) -> None:
    check(path.stem, run([sys.executable, path], endpoint))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(endpoint: dict[str, str]) -> None:
    (answer,) = run(["sh", EXAMPLES / "server" / "rest.sh"], endpoint)
    assert '"logprobs": {"content": [{"token": ' in answer


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
    check(name.removesuffix(".mjs"), run(["node", name], endpoint, javascript))


def check(name: str, lines: list[str]) -> None:
    """What can be said of the output of a model with random weights."""
    if name == "model_info":
        assert lines[1:] == ["Model type: chat-completions", "Provider: Microsoft"]
    elif name == "content_safety":
        assert lines[0].startswith("content_filter: ")
    elif name == "log_probabilities":
        assert len(lines) > 10
    elif name == "chat":
        assert int(lines[-1].removeprefix("Total tokens: ")) > 200
