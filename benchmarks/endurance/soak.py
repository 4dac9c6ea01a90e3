"""Check that a server stays as it was under good, bad and broken requests for a long time.

python -m benchmarks.endurance.soak [--minutes 10] [--package PACKAGE]

Start `phi-edge serve` and ask it from several threads. Valid questions have to be answered as when
each was asked alone. Invalid ones have to be refused. Some clients go away in the middle of an
upload, a prefill or a stream. After a warm-up and at the end, when nothing is asked, look at the
process: memory may have grown by 5%, and threads and open files not at all. Exit with 1 when any of
this does not hold. Linux alone.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from phi_edge.loading import BUNDLED_MODEL

CHAT = "/v1/chat/completions"
NUM_THREADS = 4
# Of the time, before the process is looked at for the first time.
WARM_UP = 0.2
MAX_GROWTH = 1.05
_JSON = {"content-type": "application/json"}
_START_SECONDS = 300.0
_REPLY_SECONDS = 600.0

Body = dict[str, Any]


class State(NamedTuple):
    """What a process holds."""

    rss_mb: float
    num_threads: int
    num_files: int


class Server:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log
        self.port = self._wait_for_port()

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", self.log):
                return int(found[1])
            time.sleep(0.1)
        sys.exit(f"the server did not start: {self.log}")

    @property
    def log(self) -> str:
        """What it has written."""
        return self._log.read_text(encoding="utf-8")

    @contextmanager
    def request(self, method: str, path: str, content: bytes = b"") -> Iterator[Any]:
        """Send a request on a connection of its own that is closed afterwards."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_REPLY_SECONDS)
        try:
            connection.request(method, path, content, _JSON)
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(self, body: Body) -> tuple[int, Any]:
        """Ask, and give status and JSON of the answer."""
        with self.request("POST", CHAT, json.dumps(body).encode()) as response:
            return response.status, json.loads(response.read())

    def drop(self, content: bytes, num_sent: int, seconds: float) -> None:
        """Send a part of a request, wait, and go away."""
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(head.encode() + content[:num_sent])
            time.sleep(seconds)

    def state(self) -> State:
        """Look at what the process holds."""
        place = Path(f"/proc/{self._process.pid}")
        facts = dict(re.findall(r"(\w+):\s+(\d+)", (place / "status").read_text()))
        num_files = len(list((place / "fd").iterdir()))
        return State(int(facts["VmRSS"]) / 1e3, int(facts["Threads"]), num_files)


@contextmanager
def serving(package: Path) -> Iterator[Server]:
    """Run a server of a package on a free port."""
    command = [sys.executable, "-m", "phi_edge", "serve", "--model", str(package), "--port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:  # noqa: S603
            try:
                yield Server(process, log)
            finally:
                process.terminate()


def data_url(colour: str) -> str:
    """Draw a coloured square."""
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).rectangle((50, 50, 150, 150), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def user(text: str, image: str | None = None) -> list[Body]:
    """Write messages with a question."""
    part = [{"type": "image_url", "image_url": {"url": image}}] if image else []
    return [{"role": "user", "content": [*part, {"type": "text", "text": text}]}]


def valid_bodies() -> list[Body]:
    """List questions of every kind; few, so that what the server keeps of them has an end."""
    images = [data_url(colour) for colour in ("red", "blue", "green")]
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}}
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    answer = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    asked: list[Body] = [
        {"messages": user("What do bees make?")},
        *({"messages": user("Which colour is the square?", image)} for image in images),
        {"messages": user("What is shown?", images[0]), "logprobs": True, "top_logprobs": 3},
        {"messages": user("Which colour?", images[1]), "response_format": answer},
        {"messages": user("Look.", images[2]), "tools": [tool], "tool_choice": "required"},
        {"messages": user("Say something."), "n": 3, "temperature": 1, "seed": 5},
        {"messages": user("bees and honey " * 300), "stop": ["e"]},
    ]
    return [{"max_tokens": 24, **body} for body in asked]


def invalid_contents() -> list[bytes]:
    """List what has to be refused."""
    damaged = data_url("red")[:-80]
    too_deep = {"type": "object", "properties": json.loads('{"a":' * 150 + "{}" + "}" * 150)}
    bodies: list[Body] = [
        {},
        {"messages": []},
        {"messages": user("Hi"), "temperature": 9},
        {"messages": user("Hi"), "unknown": 1},
        {"messages": user("Hi", damaged)},
        {"messages": user("Hi", "http://127.0.0.1/x.png")},
        {"messages": user("bees " * 200_000)},
        {"messages": user("Hi"), "tools": [{"type": "function", "function": too_deep}]},
        {
            "messages": user("Hi"),
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}},
        },
        {"messages": user("x" * 40_000_000)},  # more than a request may have
    ]
    return [b"{", b"\xff", b"[" * 50_000, *(json.dumps(body).encode() for body in bodies)]


class Soak:
    """Asks a server at random, and counts what comes back."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._valid = valid_bodies()
        self._invalid = invalid_contents()
        self._long = {"messages": user("bees and honey " * 1500), "max_tokens": 4000}
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.problems: list[str] = []
        self._expected = [self._texts(server.ask(body)) for body in self._valid]
        self._kinds: dict[str, Callable[[random.Random], str]] = {
            "valid": self._ask_valid,
            "valid, streamed": self._stream_valid,
            "invalid": self._ask_invalid,
            "left in the stream": self._leave_stream,
            "left in the upload": self._leave_upload,
            "left in the prefill": self._leave_prefill,
        }

    def run(self, seconds: float) -> None:
        """Ask from several threads for a while."""
        end = time.monotonic() + seconds
        seeds = [random.randrange(2**32) for _ in range(NUM_THREADS)]  # noqa: S311
        threads = [threading.Thread(target=self._work, args=(seed, end)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def settle(self) -> State:
        """Wait until all is done, and look at the process."""
        for body, expected in zip(self._valid, self._expected, strict=True):
            if self._texts(self._server.ask(body)) != expected:
                self.problems.append(f"{body['messages']} was answered in another way")
        with self._server.request("GET", "/metrics") as response:
            if b"phi_edge_requests_waiting 0.0" not in response.read():
                self.problems.append("requests are waiting still")
        time.sleep(1)
        return self._server.state()

    def _work(self, seed: int, end: float) -> None:
        rng = random.Random(seed)  # noqa: S311
        while time.monotonic() < end:
            name = rng.choice(list(self._kinds))
            try:
                outcome = self._kinds[name](rng)
            except (OSError, http.client.HTTPException, ValueError) as error:
                outcome = f"{type(error).__name__}: {error}"
                self.problems.append(f"{name}: {outcome}")
            self.outcomes[name, outcome] += 1

    @staticmethod
    def _texts(answer: tuple[int, Any]) -> list[Any]:
        """Take what is the same each time from an answer."""
        status, body = answer
        if status != 200:
            raise ValueError(f"status {status}: {body}")
        messages = [choice["message"] for choice in body["choices"]]
        calls = [[call["function"] for call in each["tool_calls"] or ()] for each in messages]
        reasons = [choice["finish_reason"] for choice in body["choices"]]
        return [[each["content"] for each in messages], calls, reasons, body["usage"]]

    def _ask_valid(self, rng: random.Random) -> str:
        index = rng.randrange(len(self._valid))
        answer = self._server.ask(self._valid[index])
        if answer[0] == 429:
            return "429, the queue is full"
        if self._texts(answer) != self._expected[index]:
            self.problems.append(f"valid question {index} was answered in another way")
            return "another answer"
        return "the answer as alone"

    def _stream_valid(self, rng: random.Random) -> str:
        index = rng.randrange(len(self._valid))
        body = {**self._valid[index], "stream": True}
        with self._server.request("POST", CHAT, json.dumps(body).encode()) as response:
            if response.status == 429:
                return "429, the queue is full"
            lines = [line for line in response.read().split(b"\n\n") if line]
        chunks = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
        texts = ["" for _ in self._expected[index][0]]
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            texts[choice["index"]] += choice["delta"].get("content") or ""
        expected = [text or "" for text in self._expected[index][0]]
        if texts != expected or lines[-1] != b"data: [DONE]":
            self.problems.append(f"valid question {index} was streamed in another way")
            return "another answer"
        return "the answer as alone"

    def _ask_invalid(self, rng: random.Random) -> str:
        index = rng.randrange(len(self._invalid))
        try:
            with self._server.request("POST", CHAT, self._invalid[index]) as response:
                body, status = json.loads(response.read()), response.status
        except ConnectionError:  # refused while it was still being sent
            return "the connection was closed"
        if not 400 <= status < 500 or body["error"]["status"] != status:
            self.problems.append(f"invalid content {index} got status {status}: {body}")
        return f"status {status}"

    def _leave_stream(self, rng: random.Random) -> str:
        body = {**self._long, "stream": True, "logit_bias": {"40": 100}}
        with self._server.request("POST", CHAT, json.dumps(body).encode()) as response:
            if response.status == 429:
                return "429, the queue is full"
            for _ in range(rng.randrange(1, 20)):
                response.readline()
        return "left"

    def _leave_upload(self, rng: random.Random) -> str:
        content = json.dumps(rng.choice(self._valid)).encode()
        self._server.drop(content, rng.randrange(len(content)), rng.random() / 10)
        return "left"

    def _leave_prefill(self, rng: random.Random) -> str:
        content = json.dumps(self._long).encode()
        self._server.drop(content, len(content), rng.random() / 2)
        return "left"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--package", type=Path, default=BUNDLED_MODEL)
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes
    with serving(arguments.package) as server:
        soak = Soak(server)
        soak.run(WARM_UP * seconds)
        before = soak.settle()
        soak.run((1 - WARM_UP) * seconds)
        after = soak.settle()
        if "Traceback" in server.log:
            soak.problems.append(f"the log has a traceback: {server.log[-2000:]}")
    for (kind, outcome), count in sorted(soak.outcomes.items()):
        print(f"{kind:20} {count:8,}  {outcome}")
    for name, value in (("after the warm-up", before), ("at the end", after)):
        print(
            f"{name}: {value.rss_mb:.1f} MB, {value.num_threads} threads, {value.num_files} files"
        )
    if after.rss_mb > MAX_GROWTH * before.rss_mb:
        soak.problems.append("the memory has grown by more than 5%")
    if after.num_threads > before.num_threads or after.num_files > before.num_files:
        soak.problems.append("threads or open files were left over")
    for problem, count in Counter(soak.problems).items():
        print(f"{count} times: {problem}")
    sys.exit(bool(soak.problems))


if __name__ == "__main__":
    main()
