"""The client for asynchronous code; the work is done by `phi_edge.client` in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Literal, overload

from typing_extensions import Self, Unpack

from phi_edge import client
from phi_edge.api.threads import call
from phi_edge.cancel import CancelToken
from phi_edge.client_options import (
    Body,
    ClientOptions,
    CompleteArguments,
    ModelSource,
    TransportOptions,
    read_settings,
)
from phi_edge.errors import EngineError
from phi_edge.models import AsyncStreamingChatCompletions, ChatCompletions, ModelInfo

Load = Callable[[], client.ChatCompletionsClient]


class ChatCompletionsClient:
    """`phi_edge.ChatCompletionsClient` with methods to await; the same arguments."""

    def __init__(
        self,
        endpoint: ModelSource | None = None,
        credential: object = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Take a model, which is loaded, in a thread, when it is first needed.

        Args:
            endpoint: See `phi_edge.ChatCompletionsClient`.
            credential: See there.
            options: See there.

        Raises:
            TypeError: See there. What else can be wrong with the model is raised by the first
                method that is awaited.
        """
        read_settings(endpoint, options)
        self._load: Load = partial(client.ChatCompletionsClient, endpoint, credential, **options)
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

    async def get_model_info(self, **_options: Unpack[TransportOptions]) -> ModelInfo:
        """Tell what the model is."""
        return (await self._client()).get_model_info()

    @overload
    async def complete(
        self,
        body: Body | None = None,
        *,
        stream: Literal[False] | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions: ...

    @overload
    async def complete(
        self,
        body: Body | None = None,
        *,
        stream: Literal[True],
        **arguments: Unpack[CompleteArguments],
    ) -> AsyncStreamingChatCompletions: ...

    @overload
    async def complete(
        self,
        body: Body | None = None,
        *,
        stream: bool | None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions | AsyncStreamingChatCompletions: ...

    async def complete(
        self,
        body: Body | None = None,
        *,
        stream: bool | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions | AsyncStreamingChatCompletions:
        """Answer a conversation, with the arguments there; cancelling the task ends the work."""
        loaded = await self._client()
        cancel = CancelToken()
        answer = await call(
            lambda: loaded.answer(body, arguments, stream=stream, cancel=cancel), cancel
        )
        if isinstance(answer, ChatCompletions):
            return answer
        return AsyncStreamingChatCompletions(answer, cancel)


async def load_client(
    endpoint: ModelSource | None = None,
    credential: object = None,
    **options: Unpack[ClientOptions],
) -> ChatCompletionsClient:
    """Load a model in a thread, and make the client for it; see `phi_edge.load_client`."""
    loaded = ChatCompletionsClient(endpoint, credential, **options)
    await loaded.get_model_info()
    return loaded
