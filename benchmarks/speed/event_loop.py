"""Measure how long asynchronous code waits for the model: the largest gaps of the event loop.

    python -m benchmarks.speed.event_loop [PACKAGE] [--rounds 5]

A task of the same loop asks for its turn every millisecond, while a client loads the package, and
while it streams an answer. Each round is a process of its own, as the first load imports ONNX
Runtime.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable

from phi_edge import aio
from phi_edge.models import UserMessage

_MESSAGES = [UserMessage(content="How many languages are in the world?")]


async def _largest_gap_ms(work: Awaitable[object]) -> float:
    """Measure the longest time for which the loop was busy with anything but its other task."""
    task = asyncio.ensure_future(work)
    largest, last = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        largest, last = max(largest, now - last), now
    await task
    return 1000 * largest


async def _stream(client: aio.ChatCompletionsClient) -> None:
    async with await client.complete(messages=_MESSAGES, max_tokens=32, stream=True) as stream:
        async for _ in stream:
            pass


async def _measure(package: str | None) -> dict[str, float]:
    client = aio.ChatCompletionsClient(package)
    loading = await _largest_gap_ms(client.get_model_info())
    streaming = await _largest_gap_ms(_stream(client))
    await client.close()
    return {"loading": loading, "streaming": streaming}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("package", nargs="?", help="phi-edge-tiny when not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(asyncio.run(_measure(arguments.package))))
        return
    command = [sys.executable, "-m", "benchmarks.speed.event_loop", "--once"]
    command += [arguments.package] if arguments.package else []
    found = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
        for _ in range(arguments.rounds)
    ]
    for name in found[0]:
        gaps = [each[name] for each in found]
        print(f"{name}: median {statistics.median(gaps):.0f} ms, most {max(gaps):.0f} ms")


if __name__ == "__main__":
    main()
