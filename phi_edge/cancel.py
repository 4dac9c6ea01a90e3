"""Stopping work from another thread, inside the run of a graph too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class CancelToken(threading.Event):
    """An event whose setting ends the work that it was given to.

    Wherever a `cancel` is taken, any `threading.Event` is: it is looked at between two chunks of
    a prompt, two images and two tokens. A token also ends the run of a graph that is under way,
    before its next operator.
    """

    def __init__(self) -> None:
        super().__init__()
        # Reentrant, as a signal handler may set the token in the middle of what is below.
        self._lock = threading.RLock()
        self._stops: list[Callable[[], None]] = []

    def set(self) -> None:
        """End the work."""
        super().set()
        with self._lock:
            for stop in self._stops:
                stop()

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call a function, which must not wait, when the token is set; at once if it is already."""
        with self._lock:
            self._stops.append(stop)
            if self.is_set():
                stop()
        try:
            yield
        finally:
            with self._lock:
                self._stops.remove(stop)


def close(iterator: Iterator[Any], cancel: threading.Event) -> None:
    """End an iterator, whose work looks at `cancel`.

    Where another thread is in the middle of it, that one brings it to its end.
    """
    cancel.set()
    if (close_generator := getattr(iterator, "close", None)) is None:
        return
    try:
        close_generator()
    except ValueError as error:
        if "already executing" not in str(error):
            raise
