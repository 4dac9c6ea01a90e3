"""The thread that answers requests, one after another, and the queue before it."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable

from phi_edge.api.routes import Reply, error_reply
from phi_edge.errors import HttpResponseError

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5
_JOIN_SECONDS = 10

Respond = Callable[[threading.Event], Reply]


class Job:
    """A request in the worker's hands. Setting `cancel` ends it, wherever it is."""

    def __init__(self, respond: Respond) -> None:
        self.cancel = threading.Event()
        self._respond = respond
        self._loop = asyncio.get_running_loop()
        # First the reply, then the parts of its body if it is streamed, then None.
        self._parts: asyncio.Queue[Reply | bytes | None] = asyncio.Queue()

    async def reply(self) -> Reply:
        """Wait for the reply; a streamed body is taken with `body`."""
        reply = await self._parts.get()
        if not isinstance(reply, Reply):
            raise TypeError("the reply was taken already")
        return reply

    async def body(self) -> AsyncIterator[bytes]:
        """The parts of a streamed body, as they come."""
        try:
            while isinstance(part := await self._parts.get(), bytes):
                yield part
        finally:
            self.cancel.set()

    def run(self) -> None:
        """Do the work; called by the worker's thread."""
        if self.cancel.is_set():
            return
        try:
            reply = self._respond(self.cancel)
            self._put(reply)
            if not isinstance(reply.body, bytes):
                for part in reply.body:
                    self._put(part)
        except BaseException:  # a panic of native code, too, must not end the thread
            logger.exception("a request failed")
            self._put(error_reply(HttpResponseError(500, "the request failed; the log says why")))
        self._put(None)

    def _put(self, part: Reply | bytes | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)
        except RuntimeError:  # the server's loop is closed, so nobody waits any more
            self.cancel.set()


class Worker:
    """One thread with a bounded queue: the model's kernels use all cores for each request."""

    def __init__(self, max_waiting: int) -> None:
        self._jobs: queue.Queue[Job | None] = queue.Queue(max_waiting)
        self._running: Job | None = None
        self._thread = threading.Thread(target=self._work, name="phi-edge-worker", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return self._jobs.qsize()

    def submit(self, respond: Respond) -> Job:
        """Queue a request.

        Raises:
            HttpResponseError: 429; the queue is full.
        """
        job = Job(respond)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise HttpResponseError(
                429,
                f"{self.num_waiting} requests are waiting already: try again later",
                code="too_many_requests",
                headers={"retry-after": str(_RETRY_SECONDS)},
            ) from None
        return job

    def close(self) -> None:
        """Cancel what runs and what waits, and end the thread."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.cancel.set()
        if (running := self._running) is not None:
            running.cancel.set()
        self._jobs.put(None)
        self._thread.join(_JOIN_SECONDS)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._running = job
            job.run()
            self._running = None
