"""The native client for asynchronous code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from azure.core.credentials import AzureKeyCredential

import phi_edge
from phi_edge import HttpResponseError, aio
from phi_edge.api.service import ChatService
from phi_edge.api.threads import AsyncStream, call
from phi_edge.models import UserMessage

MESSAGES = [UserMessage(content="How many languages are in the world?")]
# So long that most of a run is its prompt, also when a good deal of the answer is there.
LONG = [UserMessage(content="How many languages are in the world? " * 60)]


def test_the_same_answers(service: ChatService) -> None:
    client = phi_edge.ChatCompletionsClient(service, max_tokens=6)

    async def ask() -> None:
        async with aio.ChatCompletionsClient(service, max_tokens=6) as twin:
            whole = await twin.complete(messages=MESSAGES)
            assert whole.choices == client.complete(messages=MESSAGES).choices
            assert await twin.get_model_info() == client.get_model_info()
            async with await twin.complete(messages=MESSAGES, stream=True) as stream:
                pieces = [update.choices[0].delta.content async for update in stream]
            assert "".join(map(str, pieces)) == whole.choices[0].message.content
            with pytest.raises(HttpResponseError, match="max_tokens"):
                await twin.complete(messages=MESSAGES, max_tokens=-4)
        loaded = await aio.load_client(service)
        one = await loaded.complete({"messages": [{"role": "user", "content": "Hi"}], "n": 2})
        assert len(one.choices) == 2

    asyncio.run(ask())


def test_code_for_the_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's asynchronous client, but for its import."""
    monkeypatch.delenv("PHI_EDGE_MODEL", raising=False)
    url = "https://my-phi.eastus2.inference.ai.azure.com"

    async def ask() -> None:
        async with aio.ChatCompletionsClient(
            endpoint=url, credential=AzureKeyCredential("key"), temperature=0, logging_enable=True
        ) as client:
            info = await client.get_model_info(headers={"x-ms-client-request-id": "1"})
            assert info.model_name == "phi-edge-tiny"
            result = await client.complete(
                messages=MESSAGES, stream=True, headers={"x": "y"}, read_timeout=30
            )
            pieces = [update.choices[0].delta.content or "" async for update in result]
            assert "".join(pieces) == "About 7,000."
        client = await aio.load_client(endpoint=url, credential=AzureKeyCredential("key"))
        answer = await client.complete(messages=MESSAGES, seed=1)
        assert answer.choices[0].message.content == "About 7,000."
        await client.close()

    asyncio.run(ask())


def test_misspelt_arguments(service: ChatService) -> None:
    async def ask() -> None:
        with pytest.raises(TypeError, match="max_token"):
            aio.ChatCompletionsClient(service, max_token=3)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="num_thread"):
            await aio.load_client(num_thread=3)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="temprature"):
            await aio.ChatCompletionsClient(service).complete(  # type: ignore[call-overload]
                messages=MESSAGES, temprature=1
            )

    asyncio.run(ask())


async def count_turns(until: Awaitable[object]) -> int:
    """How often the event loop comes round meanwhile."""
    task = asyncio.ensure_future(until)
    num_turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        num_turns += 1
    await task
    return num_turns


def test_the_event_loop_goes_on_while_a_model_loads(compact_fp32: Path) -> None:
    async def load() -> None:
        assert await count_turns(aio.load_client(compact_fp32, num_threads=1)) > 3
        client = aio.ChatCompletionsClient(compact_fp32)
        both = asyncio.gather(client.get_model_info(), client.get_model_info())
        assert await count_turns(both) > 3
        assert both.result()[0] == both.result()[1]
        await client.close()
        with pytest.raises(phi_edge.EngineError, match="closed"):
            await client.complete(messages=MESSAGES, max_tokens=1)

    asyncio.run(load())


def test_what_is_wrong_with_a_model_is_raised_when_it_is_needed(tmp_path: Path) -> None:
    async def load() -> None:
        with pytest.raises(phi_edge.PackageNotFoundError):
            await aio.load_client(tmp_path)
        client = aio.ChatCompletionsClient(tmp_path)
        for _ in range(2):
            with pytest.raises(phi_edge.PackageNotFoundError):
                await client.complete(messages=MESSAGES)
        await client.close()

    asyncio.run(load())


def test_giving_up_on_a_model_that_loads(compact_fp32: Path) -> None:
    """Others still get it."""

    async def load() -> None:
        client = aio.ChatCompletionsClient(compact_fp32)
        first = asyncio.create_task(client.get_model_info())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        answer = await client.complete(messages=MESSAGES, max_tokens=1)
        assert answer.usage.completion_tokens == 1
        await client.close()

    asyncio.run(load())


def test_loops_that_come_and_go(compact_fp32: Path) -> None:
    """A client belongs to no loop: one ends while it loads, and others go on with it."""
    client = aio.ChatCompletionsClient(compact_fp32)

    async def give_up() -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(client.get_model_info(), 1e-3)

    asyncio.run(give_up())
    for _ in range(2):
        answer = asyncio.run(client.complete(messages=MESSAGES, max_tokens=1))
        assert answer.usage.completion_tokens == 1
    asyncio.run(client.close())
    with pytest.raises(phi_edge.EngineError, match="closed"):
        asyncio.run(client.complete(messages=MESSAGES, max_tokens=1))


def test_a_call_that_waits_for_a_thread_is_not_made_once_it_is_cancelled() -> None:
    done, release = [], threading.Event()

    async def give_up() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, release.wait)
        cancel = threading.Event()
        waiting = asyncio.create_task(call(lambda: done.append(1), cancel))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert cancel.is_set()
        release.set()
        await busy

    asyncio.run(give_up())
    assert done == []


class Watch:
    """A content filter that tells of every token."""

    num_held_characters = 0

    def __init__(self) -> None:
        self.num_tokens = 0
        self.is_running = threading.Event()

    def finds(self, _text: str) -> bool:
        self.num_tokens += 1
        if self.num_tokens > 2:
            self.is_running.set()
        return False


async def leave_by_cancelling_a_whole_answer(client: aio.ChatCompletionsClient) -> None:
    await client.complete(messages=LONG, max_tokens=4000)


async def leave_by_cancelling_a_stream(client: aio.ChatCompletionsClient) -> None:
    async for _ in await client.complete(messages=LONG, max_tokens=4000, stream=True):
        pass


async def leave_in_the_middle(client: aio.ChatCompletionsClient) -> None:
    stream = await client.complete(messages=LONG, max_tokens=4000, stream=True)
    async with stream:
        for _ in range(4):
            await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def leave_while_another_task_reads(client: aio.ChatCompletionsClient) -> None:
    stream = await client.complete(messages=LONG, max_tokens=4000, stream=True)

    has_begun = asyncio.Event()

    async def read() -> int:
        num_updates = 0
        async for _ in stream:
            num_updates += 1
            if num_updates > 4:
                has_begun.set()
        return num_updates

    reading = asyncio.create_task(read())
    await has_begun.wait()
    await stream.aclose()
    assert await reading < 4000, "for the reader, it is at its end"


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_cancelling_a_whole_answer,
        leave_by_cancelling_a_stream,
        leave_in_the_middle,
        leave_while_another_task_reads,
    ],
)
def test_leaving_ends_the_work_and_keeps_the_conversation(
    compact_fp32: Path,
    caplog: pytest.LogCaptureFixture,
    leave: Callable[[aio.ChatCompletionsClient], Awaitable[None]],
) -> None:
    caplog.set_level(logging.INFO, "phi_edge")
    watch = Watch()

    async def ask() -> None:
        async with aio.ChatCompletionsClient(compact_fp32, content_filters=[watch]) as client:
            task = asyncio.ensure_future(leave(client))
            await asyncio.to_thread(watch.is_running.wait, 60)
            if "cancelling" in leave.__name__:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                await task
            # Not a moment later: all of it has come to its end.
            num_tokens = watch.num_tokens
            assert num_tokens < 4000
            await asyncio.sleep(0.05)
            assert watch.num_tokens == num_tokens
            assert "are cached" not in caplog.text
            usage = (await client.complete(messages=LONG, max_tokens=1)).usage
            assert f"{usage.prompt_tokens} of {usage.prompt_tokens} prompt tokens" in caplog.text

    asyncio.run(ask())


def test_a_stream_that_is_not_read_to_its_end_is_closed_once() -> None:
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(threading.current_thread())

    async def read() -> None:
        cancel = threading.Event()
        stream = AsyncStream(numbers(), cancel)
        assert await anext(stream) == 0
        assert not cancel.is_set()
        await stream.aclose()
        await stream.aclose()
        assert cancel.is_set()
        assert [item async for item in stream] == []

    asyncio.run(read())
    assert len(closed) == 1
    assert closed[0] is not threading.main_thread()
