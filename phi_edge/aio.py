"""The client for asynchronous code; the work is done by `phi_edge.client` in threads."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from phi_edge import client
from phi_edge.api.threads import call, iterate
from phi_edge.cancel import CancelToken
from phi_edge.models import ChatCompletions, ModelInfo, StreamingChatCompletionsUpdate

if TYPE_CHECKING:
    from typing_extensions import Self


class AsyncStreamingChatCompletions:
    """The chunks of a streamed answer, as they come. Closing it ends the work."""

    def __init__(self, stream: client.StreamingChatCompletions, cancel: threading.Event) -> None:
        self._cancel = cancel
        self._updates = iterate(iter(stream), cancel)

    def __aiter__(self) -> AsyncIterator[StreamingChatCompletionsUpdate]:
        return self._updates

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the work; nothing more comes."""
        self._cancel.set()


class ChatCompletionsClient:
    """`phi_edge.ChatCompletionsClient` with methods to await; the same arguments."""

    def __init__(self, *args: Any, **arguments: Any) -> None:
        """Load a model, or take one that is loaded; see `phi_edge.ChatCompletionsClient`."""
        self._client = client.ChatCompletionsClient(*args, **arguments)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the model, if the client loaded it."""
        self._client.close()

    async def get_model_info(self) -> ModelInfo:
        """What the model is."""
        return self._client.get_model_info()

    async def complete(
        self, body: Mapping[str, Any] | None = None, **arguments: Any
    ) -> ChatCompletions | AsyncStreamingChatCompletions:
        """See `phi_edge.ChatCompletionsClient.complete`; cancelling the task ends the work."""
        cancel = CancelToken()
        request = self._client.make_body(body, **arguments)
        answer = await call(lambda: self._client.send(request, cancel), cancel)
        if isinstance(answer, ChatCompletions):
            return answer
        return AsyncStreamingChatCompletions(answer, cancel)


async def load_client(*args: Any, **arguments: Any) -> ChatCompletionsClient:
    """See `phi_edge.load_client`."""
    return ChatCompletionsClient(*args, **arguments)
