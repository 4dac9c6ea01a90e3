"""The main job makes no network call: Python's are denied, and the system's are counted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import GOLDEN

ROOT = Path(__file__).parents[1]

# Export, a question about an image, and the facade. Any socket but a local pipe is an error, and
# so is any name that is looked up.
MAIN_JOB = """
import sys

def deny(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.bind",
                 "socket.sendto", "urllib.Request", "http.client.connect"):
        print("attempt:", event, arguments, flush=True)
        raise RuntimeError(f"{event} in the main job")

sys.addaudithook(deny)
import socket
try:
    socket.getaddrinfo("localhost", 80)
except RuntimeError:
    print("denied")

import io
from contextlib import redirect_stdout
from phi_edge.cli import main
from phi_edge import ChatCompletionsClient
from phi_edge.models import ImageContentItem, ImageUrl, TextContentItem, UserMessage

checkpoint, package, image = sys.argv[1:]
for arguments in (
    ["export", checkpoint, package],
    ["chat", "--model", package, "--image", image, "--num-crops", "1", "--max-tokens", "3", "Hi"],
    ["verify", package],
):
    try:
        main(arguments)
    except SystemExit as stop:
        assert not stop.code, stop.code
with ChatCompletionsClient() as client:
    picture = ImageUrl.load(image_file=image, image_format="png", detail="low")
    content = [TextContentItem(text="What is shown?"), ImageContentItem(image_url=picture)]
    response = client.complete(messages=[UserMessage(content=content)], max_tokens=3)
    assert response.usage.completion_tokens
print("done")
"""


def main_job(compact_checkpoint: Path, tmp_path: Path) -> list[str]:
    script = tmp_path / "main_job.py"
    script.write_text(MAIN_JOB)
    image = GOLDEN / "images" / "wide_90x60.png"
    arguments = (script, compact_checkpoint, tmp_path / "package", image)
    return [sys.executable, *map(str, arguments)]


def run(command: list[str]) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
    return done.stdout


def test_no_socket_is_asked_for(compact_checkpoint: Path, tmp_path: Path) -> None:
    output = run(main_job(compact_checkpoint, tmp_path))
    assert output.startswith("attempt: socket.getaddrinfo"), "the hook works"
    assert output.splitlines()[1] == "denied"
    assert output.count("attempt:") == 1


def test_without_a_network(compact_checkpoint: Path, tmp_path: Path) -> None:
    """In a network namespace that has no interface; and native code connects to nothing."""
    unshare, strace = shutil.which("unshare"), shutil.which("strace")
    if not unshare or subprocess.run([unshare, "-n", "true"], check=False).returncode:
        pytest.skip("needs Linux and the right to make a network namespace")
    trace = tmp_path / "trace"
    tracer = [strace, "-f", "-qq", "--seccomp-bpf", "-e", "trace=%network", "-o", str(trace)]
    prefix = [unshare, "-n", *(tracer if strace else [])]
    run([*map(str, prefix), *main_job(compact_checkpoint, tmp_path)])
    if strace:
        calls = [line for line in trace.read_text().splitlines() if "AF_INET" in line]
        assert not [line for line in calls if "connect(" in line or "sendto(" in line]
