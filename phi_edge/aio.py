"""The client for asynchronous code; the work is done by `phi_edge.client` in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, overload

from typing_extensions import Self, Unpack

from phi_edge import client
from phi_edge.api.threads import AsyncStream, call
from phi_edge.cancel import CancelToken
from phi_edge.client import ClientOptions, CompleteArguments, ModelSource
from phi_edge.errors import EngineError
from phi_edge.models import ChatCompletions, ModelInfo, StreamingChatCompletionsUpdate

Load = Callable[[], client.ChatCompletionsClient]


class AsyncStreamingChatCompletions(AsyncStream[StreamingChatCompletionsUpdate]):
    """The chunks of a streamed answer, as they come. Closing it ends the work."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.aclose()


class ChatCompletionsClient:
    """`phi_edge.ChatCompletionsClient` with methods to await; the same arguments."""

    def __init__(
        self,
        model: ModelSource | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Take a model, which is loaded, in a thread, when it is first needed.

        Args:
            model: See `phi_edge.ChatCompletionsClient`.
            options: See there.

        Raises:
            TypeError: See there. What else can be wrong with the model is raised by the first
                method that is awaited.
        """
        client.split_options(model, options)
        self._load: Load = partial(client.ChatCompletionsClient, model, **options)
        self._loaded: client.ChatCompletionsClient | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    async def _client(self) -> client.ChatCompletionsClient:
        if self._loaded is not None:
            return self._loaded
        return await asyncio.to_thread(self._load_once)

    def _load_once(self) -> client.ChatCompletionsClient:
        with self._lock:
            if self._loaded is not None:
                return self._loaded
            if self._is_closed:
                raise EngineError("the client is closed: make another")
            self._loaded = self._load()
            return self._loaded

    async def __aenter__(self) -> Self:
        await self._client()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the model, if the client loaded it."""
        await asyncio.to_thread(self._close_once)

    def _close_once(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._loaded is not None:
                self._loaded.close()

    async def get_model_info(self) -> ModelInfo:
        """Tell what the model is."""
        return (await self._client()).get_model_info()

    @overload
    async def complete(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        stream: Literal[False] | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions: ...

    @overload
    async def complete(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        stream: Literal[True],
        **arguments: Unpack[CompleteArguments],
    ) -> AsyncStreamingChatCompletions: ...

    @overload
    async def complete(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        stream: bool | None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions | AsyncStreamingChatCompletions: ...

    async def complete(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        stream: bool | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions | AsyncStreamingChatCompletions:
        """Answer a conversation, with the arguments there; cancelling the task ends the work."""
        loaded = await self._client()
        cancel = CancelToken()
        request = loaded.make_body(body, arguments, stream=stream)
        answer = await call(lambda: loaded.send(request, cancel), cancel)
        if isinstance(answer, ChatCompletions):
            return answer
        return AsyncStreamingChatCompletions(answer, cancel)


async def load_client(
    model: ModelSource | None = None, **options: Unpack[ClientOptions]
) -> ChatCompletionsClient:
    """Load a model in a thread, and make the client for it; see `phi_edge.load_client`."""
    loaded = ChatCompletionsClient(model, **options)
    await loaded.get_model_info()
    return loaded
