"""The client for asynchronous code; the work is done by `phi_edge.client` in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from phi_edge import client
from phi_edge.api.threads import AsyncStream, call
from phi_edge.cancel import CancelToken
from phi_edge.errors import EngineError
from phi_edge.models import ChatCompletions, ModelInfo, StreamingChatCompletionsUpdate

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from phi_edge.client import ClientOptions, CompleteArguments, ModelSource


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
        self._load = lambda: client.ChatCompletionsClient(model, **options)
        self._loading: asyncio.Future[client.ChatCompletionsClient] | None = None
        self._is_closed = False

    async def _client(self) -> client.ChatCompletionsClient:
        if self._is_closed:
            raise EngineError("the client is closed: make another")
        if self._loading is None:
            self._loading = asyncio.ensure_future(asyncio.to_thread(self._load))
        # One that gives up waiting leaves it to the others.
        return await asyncio.shield(self._loading)

    async def __aenter__(self) -> Self:
        await self._client()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the model, if the client loaded it."""
        self._is_closed = True
        if self._loading is not None:
            await asyncio.wait([self._loading])
            if self._loading.exception() is None:
                await asyncio.to_thread(self._loading.result().close)

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
        """See `phi_edge.ChatCompletionsClient.complete`; cancelling the task ends the work."""
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
