"""Sessions of ONNX Runtime whose runs a test has in its hands."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# Makes a run, or does not; it gets the run's options and a function that makes it.
Intercept = Callable[[Any, Callable[[], Any]], Any]


def let_run(_options: Any, run: Callable[[], Any]) -> Any:
    return run()


class Intercepted:
    """A session; its runs go through a function, which may be changed."""

    def __init__(self, session: Any, intercept: Intercept = let_run) -> None:
        self._session = session
        self.intercept = intercept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *args: Any) -> Any:
        return self.intercept(args[-1], lambda: self._session.run(*args))

    def run_with_iobinding(self, *args: Any) -> Any:
        return self.intercept(args[-1], lambda: self._session.run_with_iobinding(*args))


def once(intercept: Intercept, num_before: int = 0) -> Intercept:
    """Intercept one run after some others, and let all others be."""
    num_runs = 0

    def first(options: Any, run: Callable[[], Any]) -> Any:
        nonlocal num_runs
        num_runs += 1
        return intercept(options, run) if num_runs == num_before + 1 else run()

    return first


def never_ending(options: Any, run: Callable[[], Any]) -> None:
    """A run that writes what it has to, and goes on until it is terminated."""
    run()
    deadline = time.monotonic() + 60
    while not options.terminate:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    raise RuntimeError("Exiting due to terminate flag being set to true.")
