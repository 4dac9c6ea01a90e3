"""The sides of a comparison: a package or a model file, and the Python that runs it.

The standard library only: on Linux a new process counts the peak RSS of the one that started it as
its own, so this one has to stay small.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.processes import peer_environment

ROOT = Path(__file__).parents[2]
KINDS = ("ours", "genai", "llamacpp", "openvino", "machine")

Figures = dict[str, float]


class UnknownTaskError(Exception):
    """A side has no such task: that runtime cannot do it, or no one has written it."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A side as the file of sides describes it.

    Attributes:
        kind: The worker that runs it, one of `KINDS`.
        model: Package folder or model file.
        python: A Python with what the worker imports; this one when None.
        options: Arguments of the worker's class beside the model.
        root: Checkout from which the worker runs.
    """

    kind: str
    model: str = ""
    python: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    root: str = str(ROOT)


def read_sides(file: Path) -> dict[str, Spec]:
    """Read a JSON object of sides by name; the first is the one that others are measured against.

    Raises:
        ValueError: It is not such an object.
        OSError: It cannot be read.
    """
    raw = json.loads(file.read_text(encoding="utf-8"))
    try:
        sides = {name: Spec(**fields) for name, fields in raw.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{file} is not an object of sides: {error}") from None
    for name, spec in sides.items():
        if spec.kind not in KINDS:
            raise ValueError(f"{file}: {name} is {spec.kind!r}, not one of {', '.join(KINDS)}")
    return sides


class Side:
    """A side's process: starts when it is first asked, and stays, so that nothing loads twice."""

    def __init__(self, name: str, spec: Spec) -> None:
        self.name = name
        self.spec = spec
        self._process: subprocess.Popen[str] | None = None

    def ask(self, task: str, **arguments: Any) -> Figures:
        """Run a task, and wait for its figures.

        Raises:
            UnknownTaskError: The side has no such task.
            RuntimeError: It failed, or the process ended.
        """
        process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError(f"{self.name} has no pipes")
        process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {process.wait()}; see above")
        answer = json.loads(line)
        if "unknown" in answer:
            raise UnknownTaskError(f"{self.name} has no task {task}")
        if "error" in answer:
            raise RuntimeError(f"{self.name}, {task}: {answer['error']}")
        figures: Figures = answer["figures"]
        return figures

    def _start(self) -> subprocess.Popen[str]:
        worker = f"benchmarks.speed.workers.{self.spec.kind}"
        command = [self.spec.python or sys.executable, "-m", worker]
        self._process = subprocess.Popen(  # noqa: S603 - the user's own command
            [*command, self.spec.model, json.dumps(self.spec.options)],
            cwd=self.spec.root,
            env=peer_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self._process

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


@contextmanager
def open_sides(specs: Mapping[str, Spec]) -> Iterator[list[Side]]:
    """Make sides whose processes end with the context."""
    sides = [Side(name, spec) for name, spec in specs.items()]
    try:
        yield sides
    finally:
        for side in sides:
            side.close()
