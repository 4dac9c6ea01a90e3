"""Messages, answers and settings of chat completions, named as in `azure.ai.inference.models`.

Each object has the API's JSON: fields are attributes, and everything that the JSON has, known here
or not, is there by its key. Optional fields that are not there are None.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, EnumMeta
from typing import Any

from typing_extensions import Self

from phi_edge.api.threads import AsyncStream
from phi_edge.cancel import close
from phi_edge.errors import GenerationCancelled
from phi_edge.image.files import ImageSource, to_file
from phi_edge.json_object import (
    Field,
    JsonObject,
    Nested,
    TimeField,
    list_of,
    member_of,
    object_of,
)

__all__ = [
    "AssistantMessage",
    "AsyncStreamingChatCompletions",
    "ChatChoice",
    "ChatCompletions",
    "ChatCompletionsNamedToolChoice",
    "ChatCompletionsNamedToolChoiceFunction",
    "ChatCompletionsResponseFormat",
    "ChatCompletionsToolCall",
    "ChatCompletionsToolChoicePreset",
    "ChatCompletionsToolDefinition",
    "ChatRequestMessage",
    "ChatResponseMessage",
    "ChatRole",
    "CompletionsFinishReason",
    "CompletionsUsage",
    "ContentItem",
    "DeveloperMessage",
    "FunctionCall",
    "FunctionDefinition",
    "ImageContentItem",
    "ImageDetailLevel",
    "ImageUrl",
    "JsonSchemaFormat",
    "ModelInfo",
    "ModelType",
    "StreamingChatChoiceUpdate",
    "StreamingChatCompletions",
    "StreamingChatCompletionsUpdate",
    "StreamingChatResponseMessageUpdate",
    "StreamingChatResponseToolCallUpdate",
    "SystemMessage",
    "TextContentItem",
    "ToolMessage",
    "UserMessage",
]


class _AnyCase(EnumMeta):
    """Finds members by their names in any case, as the SDK's enums do."""

    def __getitem__(cls, name: str) -> Any:
        return super().__getitem__(name.upper())

    def __getattr__(cls, name: str) -> Any:
        try:
            return cls.__members__[name.upper()]
        except KeyError:
            raise AttributeError(name) from None


class ChatRole(str, Enum, metaclass=_AnyCase):
    """Who says something."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    DEVELOPER = "developer"


class CompletionsFinishReason(str, Enum, metaclass=_AnyCase):
    """Why a completion ended."""

    STOPPED = "stop"
    TOKEN_LIMIT_REACHED = "length"  # noqa: S105 - no password
    CONTENT_FILTERED = "content_filter"
    TOOL_CALLS = "tool_calls"


class ChatCompletionsToolChoicePreset(str, Enum, metaclass=_AnyCase):
    """Whether a tool is called."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class ChatCompletionsResponseFormat(str, Enum, metaclass=_AnyCase):
    """What a completion has to be."""

    TEXT = "text"
    JSON_OBJECT = "json_object"


class ImageDetailLevel(str, Enum, metaclass=_AnyCase):
    """How closely to look at an image."""

    AUTO = "auto"
    LOW = "low"
    HIGH = "high"


class ModelType(str, Enum, metaclass=_AnyCase):
    """What a model does."""

    EMBEDDINGS = "embeddings"
    IMAGE_GENERATION = "image_generation"
    TEXT_GENERATION = "text_generation"
    IMAGE_EMBEDDINGS = "image_embeddings"
    AUDIO_GENERATION = "audio_generation"
    CHAT_COMPLETION = "chat_completion"


_role = member_of(ChatRole)
_reason = member_of(CompletionsFinishReason)


# Content


class ImageUrl(JsonObject):
    """Where an image is: a data URL, and how closely to look at it."""

    url = Field(str)
    detail = Field[ImageDetailLevel | str | None](member_of(ImageDetailLevel))

    @classmethod
    def load(
        cls,
        *,
        image_file: ImageSource,
        image_format: str | None = None,
        detail: str | ImageDetailLevel | None = None,
    ) -> Self:
        """Make a data URL of an image.

        Args:
            image_file: Path or bytes of a file, a Pillow image, or an array uint8 [height, width]
                or [height, width, 3 or 4].
            image_format: That of a file, "jpeg" or "png" for example; its header tells when None.
            detail: How closely to look.

        Raises:
            FileNotFoundError: There is no such file.
            ImageError: It is no image.
        """
        content, media_type = to_file(image_file, image_format)
        encoded = base64.b64encode(content).decode()
        return cls(url=f"data:{media_type};base64,{encoded}", detail=detail)


class ContentItem(JsonObject):
    """A part of a user's message."""

    type = Field(str)


class TextContentItem(ContentItem, type="text"):
    """Text of a message."""

    text = Field(str)


class ImageContentItem(ContentItem, type="image_url"):
    """An image of a message."""

    image_url = Nested(object_of(ImageUrl))

    def __init__(self, *args: Any, image: ImageUrl | None = None, **fields: Any) -> None:
        """As the others; earlier versions of the interface called the image's field `image`."""
        if image is not None:
            fields["image_url"] = image
        super().__init__(*args, **fields)


def _item(item: Any) -> ContentItem:
    kinds: dict[str, type[ContentItem]] = {"text": TextContentItem, "image_url": ImageContentItem}
    kind = item.get("type") if isinstance(item, Mapping) else None
    return object_of(kinds.get(str(kind), ContentItem))(item)


_content: Callable[[Any], str | list[ContentItem]] = list_of(_item)


# Tools


class FunctionDefinition(JsonObject):
    """A function that the model may call; its parameters are a JSON schema."""

    name = Field(str)
    description = Field[str | None](str)
    parameters = Field[Any](lambda schema: schema)


class ChatCompletionsToolDefinition(JsonObject, type="function"):
    """A tool that the model may call."""

    type = Field(str)
    function = Nested(object_of(FunctionDefinition))


class FunctionCall(JsonObject):
    """A function with its arguments as JSON text."""

    name = Field(str)
    arguments = Field(str)


class ChatCompletionsToolCall(JsonObject, type="function"):
    """A tool that the model called."""

    id = Field(str)
    type = Field(str)
    function = Nested(object_of(FunctionCall))


class ChatCompletionsNamedToolChoiceFunction(JsonObject):
    """The name of a function."""

    name = Field(str)


class ChatCompletionsNamedToolChoice(JsonObject, type="function"):
    """The one tool to call."""

    type = Field(str)
    function = Nested(object_of(ChatCompletionsNamedToolChoiceFunction))


class JsonSchemaFormat(JsonObject):
    """A schema by which a completion has to validate."""

    name = Field(str)
    schema = Field[Any](lambda schema: schema)
    description = Field[str | None](str)
    strict = Field[bool | None](bool)


# Messages of a request


class ChatRequestMessage(JsonObject):
    """A message of the conversation."""

    role = Field(str)


class SystemMessage(ChatRequestMessage, positional="content", role="system"):
    """What the model is told before the conversation."""

    content = Field(str)


class DeveloperMessage(ChatRequestMessage, positional="content", role="developer"):
    """A system message by another name."""

    content = Field(str)


class UserMessage(ChatRequestMessage, positional="content", role="user"):
    """What the user says: text, or a list of content items."""

    content = Nested(_content)


class AssistantMessage(ChatRequestMessage, positional="content", role="assistant"):
    """What the assistant said."""

    content = Field[str | None](str)
    tool_calls = Nested[list[ChatCompletionsToolCall] | None](
        list_of(object_of(ChatCompletionsToolCall))
    )


class ToolMessage(ChatRequestMessage, positional="content", role="tool"):
    """What a tool gave."""

    content = Field[str | None](str)
    tool_call_id = Field(str)


# Answers


class CompletionsUsage(JsonObject):
    """Tokens of a request and its answer."""

    completion_tokens = Field(int)
    prompt_tokens = Field(int)
    total_tokens = Field(int)


class ChatResponseMessage(JsonObject):
    """What the assistant says."""

    role = Field(_role)
    content = Field(str)
    tool_calls = Nested[list[ChatCompletionsToolCall] | None](
        list_of(object_of(ChatCompletionsToolCall))
    )


class ChatChoice(JsonObject):
    """One completion."""

    index = Field(int)
    finish_reason = Field(_reason)
    message = Nested(object_of(ChatResponseMessage))


class ChatCompletions(JsonObject):
    """The answer to a request."""

    id = Field(str)
    created = TimeField()
    model = Field(str)
    choices = Nested(list_of(object_of(ChatChoice)))
    usage = Nested(object_of(CompletionsUsage))

    def __str__(self) -> str:
        return json.dumps(self.as_dict(), indent=2)


class StreamingChatResponseToolCallUpdate(JsonObject):
    """What a chunk says of a tool call."""

    id = Field(str)
    function = Nested(object_of(FunctionCall))


class StreamingChatResponseMessageUpdate(JsonObject):
    """What a chunk adds to a message."""

    role = Field[ChatRole | str | None](_role)
    content = Field[str | None](str)
    tool_calls = Nested[list[StreamingChatResponseToolCallUpdate] | None](
        list_of(object_of(StreamingChatResponseToolCallUpdate))
    )


class StreamingChatChoiceUpdate(JsonObject):
    """What a chunk adds to one completion."""

    index = Field(int)
    finish_reason = Field[CompletionsFinishReason | str | None](_reason)
    delta = Nested(object_of(StreamingChatResponseMessageUpdate))


class StreamingChatCompletionsUpdate(JsonObject):
    """A chunk of a streamed answer; the last has the usage."""

    id = Field(str)
    created = TimeField()
    model = Field(str)
    choices = Nested(list_of(object_of(StreamingChatChoiceUpdate)))
    usage = Nested[CompletionsUsage | None](object_of(CompletionsUsage))


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


class AsyncStreamingChatCompletions(AsyncStream[StreamingChatCompletionsUpdate]):
    """The chunks of a streamed answer, as they come. Closing it ends the work."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.aclose()


class ModelInfo(JsonObject):
    """What the model is."""

    model_name = Field(str)
    model_type = Field(str)
    model_provider_name = Field(str)
