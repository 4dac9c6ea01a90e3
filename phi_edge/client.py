"""The client: `azure.ai.inference.ChatCompletionsClient`'s interface on a model of this machine."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from phi_edge.api.conversation import ImagePolicy, SystemRole
from phi_edge.api.request import parse_request
from phi_edge.api.safety import ContentFilter
from phi_edge.api.service import ChatService
from phi_edge.cancel import CancelToken
from phi_edge.json_view import to_json
from phi_edge.loaded_model import Model
from phi_edge.loading import load_model
from phi_edge.models import (
    ChatCompletions,
    ChatCompletionsNamedToolChoice,
    ChatCompletionsToolChoicePreset,
    ChatCompletionsToolDefinition,
    ChatRequestMessage,
    JsonSchemaFormat,
    ModelInfo,
    StreamingChatCompletionsUpdate,
)
from phi_edge.providers import AUTO

if TYPE_CHECKING:
    from typing_extensions import Self

Messages = Sequence[ChatRequestMessage | Mapping[str, Any]]
ResponseFormat = Literal["text", "json_object"] | JsonSchemaFormat | Mapping[str, Any]
ToolChoice = str | ChatCompletionsToolChoicePreset | ChatCompletionsNamedToolChoice
Tools = Sequence[ChatCompletionsToolDefinition | Mapping[str, Any]]


class StreamingChatCompletions:
    """The chunks of a streamed answer, as they come. Closing it ends the work."""

    def __init__(self, updates: Iterator[Mapping[str, Any]], cancel: threading.Event) -> None:
        self._updates = updates
        self._cancel = cancel

    def __iter__(self) -> Iterator[StreamingChatCompletionsUpdate]:
        return self

    def __next__(self) -> StreamingChatCompletionsUpdate:
        return StreamingChatCompletionsUpdate(next(self._updates))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """End the work; nothing more comes."""
        self._cancel.set()
        self._updates = iter(())


class ChatCompletionsClient:
    """Chat completions from a model of this machine.

    Attributes:
        service: What answers.
    """

    def __init__(
        self,
        model: str | Path | Model | ChatService | None = None,
        *,
        provider: str = AUTO,
        num_threads: int | None = None,
        image_policy: ImagePolicy = "last",
        system_role: SystemRole = "user",
        content_filters: Sequence[ContentFilter] = (),
        allowed_image_hosts: Collection[str] = (),
        **defaults: Any,
    ) -> None:
        """Load a model, or take one that is loaded.

        Args:
            model: A package folder, a loaded model, or a service; the bundled phi-edge-tiny
                when None. What is loaded here is closed with the client.
            provider: See `load_model`.
            num_threads: See `load_model`.
            image_policy: See `ChatService`, as the next three.
            system_role: What system messages become.
            content_filters: Checked on every prompt and completion.
            allowed_image_hosts: Hosts from which image URLs may be fetched.
            defaults: Arguments of `complete` for the calls that do not have them.

        Raises:
            TypeError: `complete` has no such argument.
            PackageError, ProviderError, EngineError: See `load_model`.
        """
        _make_body(defaults)
        self._defaults = defaults
        self._owned: Model | None = None
        if isinstance(model, ChatService):
            self.service = model
            return
        if not isinstance(model, Model):
            model = self._owned = load_model(model, provider=provider, num_threads=num_threads)
        self.service = ChatService(
            model,
            image_policy=image_policy,
            system_role=system_role,
            content_filters=content_filters,
            allowed_image_hosts=allowed_image_hosts,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the model, if the client loaded it."""
        if self._owned is not None:
            self._owned.close()

    def get_model_info(self) -> ModelInfo:
        """What the model is."""
        return ModelInfo(**self.service.info())

    @overload
    def complete(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        messages: Messages = ...,
        stream: Literal[False] | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        response_format: ResponseFormat | None = None,
        stop: str | Sequence[str] | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        seed: int | None = None,
        model: str | None = None,
        model_extras: Mapping[str, Any] | None = None,
    ) -> ChatCompletions: ...

    @overload
    def complete(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        stream: Literal[True],
        **arguments: Any,
    ) -> StreamingChatCompletions: ...

    def complete(
        self, body: Mapping[str, Any] | None = None, **arguments: Any
    ) -> ChatCompletions | StreamingChatCompletions:
        """Answer a conversation.

        Args:
            body: The whole request as the API's JSON, instead of the keywords.
            arguments: Fields of the request: `messages`, `stream`, `temperature`, `max_tokens`
                and so on; `model_extras` holds those that the Azure AI model inference API
                does not define, such as `logprobs`.

        Returns:
            The answer, or its chunks with `stream=True`.

        Raises:
            HttpResponseError: The request cannot be answered; it says why.
            TypeError: There is no such argument.
        """
        return self.send(self.make_body(body, **arguments), CancelToken())

    def make_body(self, body: Mapping[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
        """The request that `complete` would answer, as the API's JSON."""
        if body is not None:
            if arguments.keys() - {"stream"}:
                raise TypeError("complete takes a body or keywords, not both")
            return {**body, **arguments}
        given = {name: value for name, value in arguments.items() if value is not None}
        extras = {**self._defaults.get("model_extras", {}), **given.get("model_extras", {})}
        return _make_body({**self._defaults, **given, "model_extras": extras})

    def send(
        self, body: Mapping[str, Any], cancel: threading.Event
    ) -> ChatCompletions | StreamingChatCompletions:
        """Answer a request that `make_body` made.

        Args:
            body: The request as the API's JSON.
            cancel: Setting it, from another thread, stops the work.
        """
        request = parse_request(body)
        if request.stream:
            return StreamingChatCompletions(self.service.stream(request, cancel), cancel)
        return ChatCompletions(dict(self.service.complete(request, cancel)))


_ARGUMENTS = frozenset(
    {"messages", "stream", "frequency_penalty", "presence_penalty", "temperature", "top_p"}
    | {"max_tokens", "response_format", "stop", "tools", "tool_choice", "seed", "model"}
)


def _make_body(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `complete` as the API's JSON."""
    fields = dict(arguments)
    extras = fields.pop("model_extras", None) or {}
    if unknown := fields.keys() - _ARGUMENTS:
        raise TypeError(
            f"complete has no argument {', '.join(sorted(unknown))}; what the Azure AI model "
            "inference API does not define goes into model_extras"
        )
    response_format = fields.get("response_format")
    if isinstance(response_format, JsonSchemaFormat):
        fields["response_format"] = {"type": "json_schema", "json_schema": response_format}
    elif isinstance(response_format, str):
        fields["response_format"] = {"type": response_format}
    return {**to_json(fields), **extras}


def load_client(
    model: str | Path | Model | ChatService | None = None, **arguments: Any
) -> ChatCompletionsClient:
    """The client for a model; there is one kind.

    Args:
        model: See `ChatCompletionsClient`.
        arguments: See `ChatCompletionsClient`.
    """
    return ChatCompletionsClient(model, **arguments)
