"""A Hugging Face hub on this machine, with one model and no more than a download needs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODEL = "someone/phi"
_COMMIT = "0" * 40


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Tell what there is, or give a file or the part of it that was asked for."""
        path = self.path.partition("?")[0]
        files = {file.name: file.read_bytes() for file in sorted(self.folder.iterdir())}
        name = path.removeprefix(f"/{MODEL}/resolve/{_COMMIT}/")
        if name in files:
            self._give(files[name])
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                for name, content in files.items()
            ]
            self._answer(200, json.dumps(entries).encode())
        elif path.startswith(f"/api/models/{MODEL}"):
            facts = {"id": MODEL, "sha": _COMMIT, "siblings": [{"rfilename": n} for n in files]}
            self._answer(200, json.dumps(facts).encode())
        else:
            self._answer(404, b"")

    do_HEAD = do_GET  # noqa: N815 - named by the base class

    def _give(self, content: bytes) -> None:
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": _COMMIT}
        start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(start) : int(end) + 1 if end else None]
        if len(part) == len(content):
            self._answer(200, content, **headers)
        else:
            last = int(start) + len(part) - 1
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            self._answer(206, part, **headers)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that were killed."""


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def fake_hub(folder: Path) -> Iterator[str]:
    """Serve the files of a folder as `MODEL` from another process, and give the hub's address."""
    handler: Any = type("_Handler", (_Handler,), {"folder": folder})
    server = _Server(("127.0.0.1", 0), handler)
    child = os.fork()
    if not child:
        server.serve_forever()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        server.server_close()
