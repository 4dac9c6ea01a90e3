"""The core from asynchronous code: work runs in threads, and cancelling a task stops it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from phi_edge.cancel import close
from phi_edge.engine.base import check_cancelled
from phi_edge.errors import GenerationCancelled

T = TypeVar("T")

_END: Any = object()


async def call(function: Callable[[], T], cancel: threading.Event) -> T:
    """Call a function in a thread.

    When the task is cancelled `cancel` is set, which the function has to look at. The task ends
    when the function has, so that nothing goes on behind its back. A function that still waits for
    a thread is not called any more.

    Raises:
        GenerationCancelled: `cancel` was set before the function was called.
    """
    has_begun = threading.Event()

    def begin() -> T:
        has_begun.set()
        check_cancelled(cancel)
        return function()

    work = asyncio.ensure_future(asyncio.to_thread(begin))
    # Nobody may be left to take an exception.
    work.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        cancel.set()
        if has_begun.is_set():
            await asyncio.wait([work])
        raise


async def _close(iterator: Iterator[Any], cancel: threading.Event) -> None:
    """End an iterator, in a thread of its own: others may all be busy for long."""
    executor = ThreadPoolExecutor(1)
    try:
        await asyncio.get_running_loop().run_in_executor(executor, close, iterator, cancel)
    finally:
        executor.shutdown(wait=False)


class AsyncStream(AsyncIterator[T]):
    """An iterator's items, each taken in a thread as it comes."""

    def __init__(self, iterator: Iterator[T], cancel: threading.Event) -> None:
        """Take what to iterate over, and the event that ends its work."""
        self._iterator = iterator
        self._cancel = cancel
        self._is_closed = False
        self._lock = asyncio.Lock()

    async def __anext__(self) -> T:
        async with self._lock:
            if self._is_closed:
                raise StopAsyncIteration
            try:
                item = await call(lambda: next(self._iterator, _END), self._cancel)
            except BaseException as error:
                is_closed, self._is_closed = self._is_closed, True
                await _close(self._iterator, self._cancel)
                if not (is_closed and isinstance(error, GenerationCancelled)):
                    raise
                item = _END
            if item is _END or self._is_closed:
                raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """End the work; nothing more comes. Waits until the work has come to its end."""
        self._is_closed = True
        self._cancel.set()
        async with self._lock:
            await _close(self._iterator, self._cancel)
