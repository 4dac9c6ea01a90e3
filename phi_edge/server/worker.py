"""The thread that answers requests, one after another, and the queue before it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable

from phi_edge.api.http import Reply, error_event, error_reply
from phi_edge.cancel import CancelToken
from phi_edge.errors import HttpResponseError

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5
_JOIN_SECONDS = 10

Respond = Callable[[CancelToken], Reply]


class Job:
    """A request in the worker's hands. Setting `cancel` ends it, wherever it is."""

    def __init__(self, respond: Respond, timeout: float) -> None:
        """Begin to wait; after `timeout` seconds the request is answered with an error."""
        self.cancel = CancelToken()
        self._respond = respond
        self._loop = asyncio.get_running_loop()
        # First the reply, then the parts of its body if it is streamed, then None.
        self._parts: asyncio.Queue[Reply | bytes | None] = asyncio.Queue()
        self._has_reply = self._is_over = False
        self._timer = self._loop.call_later(timeout, self._expire, timeout)

    async def reply(self) -> Reply:
        """Wait for the reply; a streamed body is taken with `body`."""
        reply = await self._parts.get()
        if not isinstance(reply, Reply):
            raise TypeError("the reply was taken already")
        return reply

    async def body(self) -> AsyncIterator[bytes]:
        """Give the parts of a streamed body, as they come."""
        try:
            while isinstance(part := await self._parts.get(), bytes):
                yield part
        finally:
            self.cancel.set()

    def run(self) -> None:
        """Do the work; called by the worker's thread."""
        try:
            if not self.cancel.is_set():
                self._answer()
        except BaseException:  # a panic of native code, too, must not end the thread
            logger.exception("a request failed")
            self._call(self._fail, HttpResponseError(500, "the request failed; the log says why"))
        self._call(self._add, None)

    def _answer(self) -> None:
        reply = self._respond(self.cancel)
        self._call(self._add, reply)
        if not isinstance(reply.body, bytes):
            for part in reply.body:
                self._call(self._add, part)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        """Call a function in the event loop, where all that follows is done."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the server's loop is closed, so nobody waits any more
            self.cancel.set()

    def _add(self, part: Reply | bytes | None) -> None:
        if self._is_over:
            return
        self._has_reply = True
        if part is None:
            self._is_over = True
            self._timer.cancel()
        self._parts.put_nowait(part)

    def _fail(self, error: HttpResponseError) -> None:
        self._add(error_event(error) if self._has_reply else error_reply(error))
        self._add(None)

    def _expire(self, timeout: float) -> None:
        """Answer at once; the worker comes to an end by itself."""
        self.cancel.set()
        # As Azure's endpoints answer. OpenAI's clients would ask again, and wait as long.
        self._fail(
            HttpResponseError(
                408,
                f"the answer was not complete after {timeout:g} seconds: lower max_tokens, use a "
                "shorter prompt, or start the server with a higher --timeout",
                code="timeout",
                headers={"x-should-retry": "false"},
            )
        )


class Worker:
    """One thread with a bounded queue: the model's kernels use all cores for each request."""

    def __init__(self, max_waiting: int, timeout: float) -> None:
        """Start the thread. Each request has `timeout` seconds, the time that it waits included."""
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="phi-edge-worker", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests in the queue that somebody waits for."""
        with self._changed:
            return sum(not job.cancel.is_set() for job in self._waiting)

    def submit(self, respond: Respond) -> Job:
        """Queue a request.

        Raises:
            HttpResponseError: 429; the queue is full.
        """
        with self._changed:
            for job in [job for job in self._waiting if job.cancel.is_set()]:
                self._waiting.remove(job)
                job.run()  # to its end, as it is cancelled
        if (num_waiting := self.num_waiting) >= self._max_waiting:
            raise HttpResponseError(
                429,
                f"{num_waiting} requests are waiting already: try again later",
                code="too_many_requests",
                headers={"retry-after": str(_RETRY_SECONDS)},
            )
        job = Job(respond, self._timeout)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """Cancel what runs and what waits, and end the thread."""
        with self._changed:
            self._is_closed = True
            for job in self._waiting:
                job.cancel.set()
            if self._running is not None:
                self._running.cancel.set()
            self._changed.notify()
        self._thread.join(_JOIN_SECONDS)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()

    def _next(self) -> Job | None:
        """Wait for the next job; None after the end."""
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            self._running = self._waiting.popleft() if self._waiting else None
            return self._running
