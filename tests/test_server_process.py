"""The process of the local server: how it starts, and how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from .helpers.serving import CHAT, wait_until


def is_open(url: str) -> bool:
    """Whether a server takes connections."""
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(("num_signals", "num_tokens"), [(1, 1500), (2, 50_000)])
def test_serve_command(
    compact_fp32: Path, long: dict[str, Any], num_signals: int, num_tokens: int
) -> None:
    """SIGTERM lets a running answer end, and nobody in; a second one ends it."""
    command = [sys.executable, "-m", "phi_edge", "serve", "--model", str(compact_fp32)]
    command += ["--port", "0"]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stderr is not None
        url = None
        while url is None:
            line = process.stderr.readline()
            assert line
            url = re.search(r"http://127\.0\.0\.1:\d+", line)
        body = {**long, "max_tokens": num_tokens}
        with httpx.stream("POST", url[0] + CHAT, json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_open(url[0]))
            if num_signals > 1:
                process.send_signal(signal.SIGTERM)
                with suppress(httpx.RemoteProtocolError):  # cut off
                    list(lines)
            else:
                *_, last = [line for line in lines if line]
                assert last == "data: [DONE]"
        log = process.stderr.read()
        assert "Traceback" not in log
        assert "shutdown exceeded" not in log
        assert process.wait(60) == 0


def test_serve_without_its_extra(compact_fp32: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from phi_edge.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--model", str(compact_fp32)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "phi-edge[server]" in done.stderr
