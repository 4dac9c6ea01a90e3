"""The command line, in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import GOLDEN, Exporter

ROOT = Path(__file__).parents[1]
IMAGE = GOLDEN / "images" / "wide_90x60.png"


def phi_edge(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "phi_edge", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        check=False,
    )


def test_export_info_and_chat(compact_checkpoint: Path, tmp_path: Path) -> None:
    """The main job, from the checkpoint to a streamed answer."""
    package = tmp_path / "package"
    done = phi_edge("export", compact_checkpoint, package)
    assert (done.returncode, done.stderr) == (0, "")
    assert "int4 for cpu" in done.stdout

    done = phi_edge("info", package, "--json")
    facts = json.loads(done.stdout)
    assert facts["precision"] == "int4"
    assert facts["image_tokens"] == {
        "1 x 1 crops": 313,
        "2 x 2 crops": 757,
        "3 x 5 crops": 2353,
        "4 x 4 crops": 2509,
    }
    assert facts["size_bytes"] == sum(facts["files"].values())
    table = phi_edge("info", package)
    assert table.returncode == 0
    assert "131,072" in table.stdout

    ask = ("chat", "--model", package, "--image", IMAGE, "--num-crops", 1, "--max-tokens", 8)
    done = phi_edge(*ask, "What is shown?")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert phi_edge(*ask, "What is shown?").stdout == done.stdout


def test_conversation(compact_fp32: Path) -> None:
    """Without a prompt, each line of input is a turn, and the image stays in the first."""
    ask = ("chat", "--model", compact_fp32, "--image", IMAGE, "--num-crops", 1, "--max-tokens", 3)
    done = phi_edge(*ask, "--system", "Be brief.", stdin="What is it?\n\nAnd this?\n")
    assert (done.returncode, done.stderr) == (0, "")
    first = phi_edge(*ask, "--system", "Be brief.", "What is it?").stdout
    assert done.stdout.startswith(first)
    assert len(done.stdout) > len(first)


def test_overwrite(compact_checkpoint: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    assert phi_edge("export", compact_checkpoint, package).returncode == 0
    refused = phi_edge("export", compact_checkpoint, package)
    assert refused.returncode == 1
    assert "--overwrite" in refused.stderr
    again = phi_edge("export", compact_checkpoint, package, "--overwrite", "--precision", "fp16")
    assert again.returncode == 0
    assert "fp16 for cpu" in again.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_progress_bar(compact_checkpoint: Path, tmp_path: Path) -> None:
    """Layers, tensors, bytes and time left, on a terminal; nothing in a pipe (see above)."""
    terminal, end = os.openpty()
    arguments = ("export", str(compact_checkpoint), str(tmp_path / "out"))
    command = [sys.executable, "-m", "phi_edge", *arguments]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    shown = b""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=end, stderr=end) as process:
        os.close(end)
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while block := os.read(terminal, 2**16):
                shown += block
    os.close(terminal)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"calibrating \d+/\d+ ", text)
    assert re.search(r"writing \d+/\d+ .* \d+\.\d MB/\d+\.\d MB (\d+:\d+|-:--:--)", text)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export"], 2, "Missing argument 'CHECKPOINT'"),
        (["export", "a", "b", "--precision", "int3"], 2, "'int3' is not one of"),
        (["bake"], 2, "No such command 'bake'"),
        (["chat", "--model", "nowhere", "--seed", "x", "Hi"], 2, "not a valid integer"),
        (["serve", "--model", "nowhere"], 1, "not a phi_edge package"),
        (["serve", "--port", "x"], 2, "not a valid integer"),
        (["chat", "--model", "nowhere", "Hi"], 1, "not a phi_edge package"),
        (["chat", "--model", "nowhere", "--temperature", "-1", "Hi"], 2, "-1.0"),
        (["chat", "--model", "nowhere", "--image", "no.png", "Hi"], 1, "no image at no.png"),
        (["chat", "--model", "nowhere", "--temperature", "x", "Hi"], 2, "not a valid float"),
        (["info", "nowhere"], 1, "not a phi_edge package"),
        (["export", "a", "b", "--calibration", "c", "--method", "search"], 2, "no samples"),
        (["export", "a", "b", "--bits", "lm_head=8", "--precision", "fp16"], 2, "int4 alone"),
        (["export", "a", "b", "--bits", "lm_head"], 2, "takes PATTERN=4 or PATTERN=8"),
        (["certify", "nowhere"], 2, "Missing option '--reference'"),
        (["certify", "nowhere", "--reference", "no"], 1, "not a phi_edge package"),
        (["certify", "nowhere", "--reference", "no", "--samples", "x"], 1, "no folder of samples"),
        (["export", "nowhere", "out"], 1, "no checkpoint folder at nowhere"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, message: str) -> None:
    done = phi_edge(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_provider_that_is_missing(compact_fp32: Path) -> None:
    done = phi_edge("chat", "--model", compact_fp32, "--provider", "dml", "Hi")
    assert done.returncode == 1
    assert "pip install 'phi-edge[directml]'" in done.stderr


def test_verify_names_a_changed_file(export_compact: Exporter, tmp_path: Path) -> None:
    package = Path(shutil.copytree(export_compact("int4"), tmp_path / "package"))
    with (package / "vision.onnx.data").open("r+b") as file:
        file.write(b"\xff\xff\xff\xff")
    done = phi_edge("verify", package)
    assert done.returncode == 1
    assert "vision.onnx.data was changed" in done.stderr


def test_help_and_version() -> None:
    assert phi_edge("--help").stdout.count("\n") > 8
    assert phi_edge("--version").stdout.strip()
    assert phi_edge().returncode == 2
