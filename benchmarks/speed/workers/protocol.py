"""Answers a case's requests, one JSON object a line, over standard input and output."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from benchmarks.processes import rss_bytes

Figures = dict[str, float]

# Tokens before and after an image: the chat template and 20 words, with the checkpoint's tokenizer.
NUM_AROUND = (5, 30)


def serve(make_side: Callable[..., object]) -> None:
    """Make a side from the command line, `MODEL OPTIONS`, and run what is asked for until the end.

    A request is `{"task": name, ...arguments}`. The answer is `{"figures": ...}`, or
    `{"error": ...}`; for a task that the side does not have, `{"unknown": name}`.
    """
    # Libraries print to standard output too; theirs goes where errors go.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    model, options = sys.argv[1], json.loads(sys.argv[2])
    side = make_side(model, **options)
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(_answer(side, request.pop("task"), request)) + "\n")
        answers.flush()


def _answer(side: object, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    task = getattr(side, name, None)
    if task is None:
        return {"unknown": name}
    try:
        return {"figures": task(**arguments)}
    except Exception:  # noqa: BLE001 - whatever it is, it is told, and the process goes on
        return {"error": traceback.format_exc()}


def peak_rss_bytes() -> int:
    """Measure the most memory that was resident at a time in this process."""
    import resource

    return rss_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def count_image_tokens(rows: int, columns: int) -> int:
    """Count an image's slots by its grid of crops, as `phi_edge.image.crops.count_tokens`."""
    return 144 * (rows * columns + 1) + 1 + 12 * (rows + 1)
