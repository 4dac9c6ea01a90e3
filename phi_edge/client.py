"""The client: `azure.ai.inference.ChatCompletionsClient`'s interface on a model of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from typing_extensions import Self, TypedDict, Unpack

from phi_edge.api.parse import parse_request
from phi_edge.api.service import ChatService, ServiceOptions
from phi_edge.cancel import CancelToken, close
from phi_edge.errors import GenerationCancelled
from phi_edge.json_view import to_json
from phi_edge.loaded_model import Model
from phi_edge.loading import LoadOptions, load_model
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

Messages = Sequence[ChatRequestMessage | Mapping[str, Any]]
ResponseFormat = Literal["text", "json_object"] | JsonSchemaFormat | Mapping[str, Any]
ToolChoice = str | ChatCompletionsToolChoicePreset | ChatCompletionsNamedToolChoice
Tools = Sequence[ChatCompletionsToolDefinition | Mapping[str, Any]]
# A package folder, or what is loaded already.
ModelSource = str | Path | Model | ChatService


class CompleteDefaults(TypedDict, total=False):
    """Arguments of `complete` that a client may have for all calls.

    `model_extras` holds what the Azure AI model inference API does not define, such as `logprobs`
    or `top_k`.
    """

    frequency_penalty: float | None
    presence_penalty: float | None
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    response_format: ResponseFormat | None
    stop: str | Sequence[str] | None
    tools: Tools | None
    tool_choice: ToolChoice | None
    seed: int | None
    model_extras: Mapping[str, Any] | None


class CompleteArguments(CompleteDefaults, total=False):
    """Arguments of `complete` besides the body and `stream`."""

    messages: Messages
    model: str | None


class ClientOptions(LoadOptions, ServiceOptions, CompleteDefaults, total=False):
    """Arguments of a client besides the model: of `load_model`, `ChatService` and `complete`."""


class StreamingChatCompletions:
    """The chunks of a streamed answer, as they come. Closing it ends the work."""

    def __init__(self, updates: Iterator[Mapping[str, Any]], cancel: threading.Event) -> None:
        self._updates = updates
        self._cancel = cancel
        self._is_closed = False

    def __iter__(self) -> Iterator[StreamingChatCompletionsUpdate]:
        return self

    def __next__(self) -> StreamingChatCompletionsUpdate:
        try:
            return StreamingChatCompletionsUpdate(next(self._updates))
        except GenerationCancelled:
            if self._is_closed:
                raise StopIteration from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """End the work; nothing more comes. Any thread may call it."""
        self._is_closed = True
        close(self._updates, self._cancel)


class ChatCompletionsClient:
    """Chat completions from a model of this machine.

    Attributes:
        service: What answers.
    """

    def __init__(
        self,
        model: ModelSource | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Load a model, or take one that is loaded.

        Args:
            model: A package folder, a loaded model, or a service; the bundled phi-edge-tiny
                when None. What is loaded here is closed with the client.
            options: See `ClientOptions`.

        Raises:
            TypeError: There is no such argument, or it is of no use for a `model` of this kind.
            PackageError, ProviderError, EngineError: See `load_model`.
        """
        loading, serving, self._defaults = split_options(model, options)
        self._owned: Model | None = None
        if isinstance(model, ChatService):
            self.service = model
            return
        if not isinstance(model, Model):
            model = self._owned = load_model(model, **loading)
        try:
            self.service = ChatService(model, **serving)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the model, if the client loaded it."""
        if self._owned is not None:
            self._owned.close()

    def get_model_info(self) -> ModelInfo:
        """Tell what the model is."""
        return ModelInfo(**self.service.info())

    @overload
    def complete(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        stream: Literal[False] | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions: ...

    @overload
    def complete(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        stream: Literal[True],
        **arguments: Unpack[CompleteArguments],
    ) -> StreamingChatCompletions: ...

    @overload
    def complete(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        stream: bool | None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions | StreamingChatCompletions: ...

    def complete(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        stream: bool | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions | StreamingChatCompletions:
        """Answer a conversation.

        Args:
            body: The whole request as the API's JSON, instead of the keywords.
            stream: Give the answer in chunks, as they come.
            arguments: Fields of the request; see `CompleteArguments`.

        Returns:
            The answer, or its chunks with `stream=True`.

        Raises:
            HttpResponseError: The request cannot be answered; it says why.
            TypeError: There is no such argument.
        """
        return self.send(self.make_body(body, arguments, stream=stream), CancelToken())

    def make_body(
        self,
        body: Mapping[str, Any] | None,
        arguments: CompleteArguments,
        *,
        stream: bool | None,
    ) -> dict[str, Any]:
        """Write the request that `complete` would answer, as the API's JSON."""
        streaming = {} if stream is None else {"stream": stream}
        if body is not None:
            if arguments:
                raise TypeError("complete takes a body or keywords, not both")
            return {**body, **streaming}
        given: dict[str, Any] = {
            name: value for name, value in arguments.items() if value is not None
        }
        extras = {**(self._defaults.get("model_extras") or {}), **given.get("model_extras", {})}
        return _make_body({**self._defaults, **given, "model_extras": extras}) | streaming

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


def split_options(
    model: ModelSource | None, options: Mapping[str, Any]
) -> tuple[LoadOptions, ServiceOptions, dict[str, Any]]:
    """Split a client's options: for `load_model`, for `ChatService`, and defaults of `complete`.

    Raises:
        TypeError: One is unknown, or comes too late for a model that is loaded already.
    """
    rest: dict[str, Any] = dict(options)
    loading = {name: rest.pop(name) for name in LoadOptions.__optional_keys__ & rest.keys()}
    serving = {name: rest.pop(name) for name in ServiceOptions.__optional_keys__ & rest.keys()}
    _check_names(rest)
    late = dict(loading if isinstance(model, Model | ChatService) else {})
    late |= serving if isinstance(model, ChatService) else {}
    if late:
        raise TypeError(f"the model is loaded already, without {', '.join(sorted(late))}")
    return loading, serving, rest  # type: ignore[return-value]


def _check_names(arguments: Mapping[str, Any]) -> None:
    if unknown := arguments.keys() - CompleteArguments.__optional_keys__:
        raise TypeError(
            f"complete has no argument {', '.join(sorted(unknown))}; what the Azure AI model "
            "inference API does not define goes into model_extras"
        )


def _make_body(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Write the arguments of `complete` as the API's JSON."""
    _check_names(arguments)
    fields = dict(arguments)
    extras = fields.pop("model_extras", None) or {}
    response_format = fields.get("response_format")
    if isinstance(response_format, JsonSchemaFormat):
        fields["response_format"] = {"type": "json_schema", "json_schema": response_format}
    elif isinstance(response_format, str):
        fields["response_format"] = {"type": response_format}
    return {**to_json(fields), **extras}


def load_client(
    model: ModelSource | None = None, **options: Unpack[ClientOptions]
) -> ChatCompletionsClient:
    """Make the client for a model; there is one kind. See `ChatCompletionsClient`."""
    return ChatCompletionsClient(model, **options)
