"""The core from asynchronous code: work runs in threads, and cancelling a task stops it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_END: Any = object()


async def call(function: Callable[[], T], cancel: threading.Event) -> T:
    """Call a function in a thread.

    Args:
        function: What to call.
        cancel: Set when the task is cancelled; the function has to look at it.
    """
    try:
        return await asyncio.to_thread(function)
    except asyncio.CancelledError:
        cancel.set()
        raise


async def iterate(iterator: Iterator[T], cancel: threading.Event) -> AsyncIterator[T]:
    """Take an iterator's items in a thread, each as it comes.

    Args:
        iterator: What to take from.
        cancel: Set when the task is cancelled, or no more is taken.
    """
    try:
        while (item := await call(lambda: next(iterator, _END), cancel)) is not _END:
            yield item
    finally:
        cancel.set()
