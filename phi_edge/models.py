"""Messages, answers and settings of chat completions, named as in `azure.ai.inference.models`.

Each object is a view of the API's JSON: fields are attributes, and everything that the JSON has,
known here or not, is there by its key. Optional fields that are not there are None.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "AssistantMessage",
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
    "StreamingChatCompletionsUpdate",
    "StreamingChatResponseMessageUpdate",
    "StreamingChatResponseToolCallUpdate",
    "SystemMessage",
    "TextContentItem",
    "ToolMessage",
    "UserMessage",
]

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


class ChatRole(str, Enum):
    """Who says something."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    DEVELOPER = "developer"


class CompletionsFinishReason(str, Enum):
    """Why a completion ended."""

    STOPPED = "stop"
    TOKEN_LIMIT_REACHED = "length"  # noqa: S105 - no password
    CONTENT_FILTERED = "content_filter"
    TOOL_CALLS = "tool_calls"


class ChatCompletionsToolChoicePreset(str, Enum):
    """Whether a tool is called."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class ChatCompletionsResponseFormat(str, Enum):
    """What a completion has to be."""

    TEXT = "text"
    JSON_OBJECT = "json_object"


class ImageDetailLevel(str, Enum):
    """How closely to look at an image."""

    AUTO = "auto"
    LOW = "low"
    HIGH = "high"


class ModelType(str, Enum):
    """What a model does."""

    EMBEDDINGS = "embeddings"
    IMAGE_GENERATION = "image_generation"
    TEXT_GENERATION = "text_generation"
    IMAGE_EMBEDDINGS = "image_embeddings"
    AUDIO_GENERATION = "audio_generation"
    CHAT_COMPLETION = "chat_completion"


class _Field(Generic[T]):
    """A field of the JSON as an attribute."""

    def __init__(self, read: Callable[[Any], T]) -> None:
        """Take what makes the attribute's value out of the JSON's."""
        self._read = read
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: _JsonView, owner: type) -> T: ...

    def __get__(self, instance: _JsonView | None, owner: type) -> Any:
        if instance is None:
            return self
        value = instance.get(self._name)
        return value if value is None else self._read(value)

    def __set__(self, instance: _JsonView, value: Any) -> None:
        instance[self._name] = value


class _JsonView(MutableMapping[str, Any]):
    """A JSON object with attributes. Views of the same JSON see each other's changes."""

    _constants: ClassVar[Mapping[str, str]] = {}
    _positional: ClassVar[str | None] = None

    def __init_subclass__(cls, positional: str | None = None, **constants: str) -> None:
        """Take the field that may be given by position, and what the JSON always says."""
        super().__init_subclass__()
        cls._positional = positional
        cls._constants = constants

    def __init__(self, *args: Any, **fields: Any) -> None:
        """Take the JSON's mapping, or its fields by keyword; those that are None are left out.

        Raises:
            TypeError: More was given than the object has.
        """
        if len(args) > 1:
            raise TypeError(f"{type(self).__name__} takes one positional argument")
        if args and isinstance(args[0], Mapping):
            self._json = args[0] if isinstance(args[0], dict) else to_json(args[0])
        else:
            if args:
                if self._positional is None:
                    raise TypeError(f"{type(self).__name__} takes a mapping or keywords")
                fields = {self._positional: args[0], **fields}
            self._json = {key: to_json(value) for key, value in fields.items() if value is not None}
        for key, value in self._constants.items():
            self._json.setdefault(key, value)

    def __getitem__(self, key: str) -> Any:
        return self._json[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._json[key] = to_json(value)

    def __delitem__(self, key: str) -> None:
        del self._json[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._json)

    def __len__(self) -> int:
        return len(self._json)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._json == to_json(other)

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return str(self._json)

    def as_dict(self) -> dict[str, Any]:
        """A copy of the JSON."""
        copy: dict[str, Any] = json.loads(json.dumps(self._json))
        return copy


def to_json(value: Any) -> Any:
    """A value as JSON has it; objects of this module give the JSON that they look at."""
    if isinstance(value, _JsonView):
        return value._json  # noqa: SLF001 - the same module
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def _each(read: Callable[[Any], T]) -> Callable[[list[Any]], list[T]]:
    return lambda values: [read(value) for value in values]


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _member(kind: type[E]) -> Callable[[str], E | str]:
    """The enum's member of a name; a name that it does not know stays."""
    return lambda name: kind(name) if name in [member.value for member in kind] else name


_role = _member(ChatRole)
_reason = _member(CompletionsFinishReason)


# Content


class ImageUrl(_JsonView):
    """Where an image is: a data URL, and how closely to look at it."""

    url = _Field(str)
    detail = _Field[ImageDetailLevel | str | None](_member(ImageDetailLevel))

    @classmethod
    def load(
        cls,
        *,
        image_file: str | Path,
        image_format: str,
        detail: str | ImageDetailLevel | None = None,
    ) -> Self:
        """Make a data URL of an image file.

        Args:
            image_file: Path of the file.
            image_format: "jpeg" or "png", for example.
            detail: How closely to look.

        Raises:
            FileNotFoundError: There is no such file.
        """
        content = base64.b64encode(Path(image_file).read_bytes()).decode()
        return cls(url=f"data:image/{image_format};base64,{content}", detail=detail)


class ContentItem(_JsonView):
    """A part of a user's message."""

    type = _Field(str)


class TextContentItem(ContentItem, type="text"):
    """Text of a message."""

    text = _Field(str)


class ImageContentItem(ContentItem, type="image_url"):
    """An image of a message."""

    image_url = _Field(ImageUrl)

    def __init__(self, *args: Any, image: ImageUrl | None = None, **fields: Any) -> None:
        """As the others; earlier versions of the interface called the image's field `image`."""
        if image is not None:
            fields["image_url"] = image
        super().__init__(*args, **fields)


def _content(content: Any) -> str | list[ContentItem]:
    if isinstance(content, str):
        return content
    kinds: dict[str | None, type[ContentItem]] = {
        "text": TextContentItem,
        "image_url": ImageContentItem,
    }
    return [kinds.get(item.get("type"), ContentItem)(item) for item in content]


# Tools


class FunctionDefinition(_JsonView):
    """A function that the model may call; its parameters are a JSON schema."""

    name = _Field(str)
    description = _Field[str | None](str)
    parameters = _Field[Any](lambda schema: schema)


class ChatCompletionsToolDefinition(_JsonView, type="function"):
    """A tool that the model may call."""

    type = _Field(str)
    function = _Field(FunctionDefinition)


class FunctionCall(_JsonView):
    """A function with its arguments as JSON text."""

    name = _Field(str)
    arguments = _Field(str)


class ChatCompletionsToolCall(_JsonView, type="function"):
    """A tool that the model called."""

    id = _Field(str)
    type = _Field(str)
    function = _Field(FunctionCall)


class ChatCompletionsNamedToolChoiceFunction(_JsonView):
    """The name of a function."""

    name = _Field(str)


class ChatCompletionsNamedToolChoice(_JsonView, type="function"):
    """The one tool to call."""

    type = _Field(str)
    function = _Field(ChatCompletionsNamedToolChoiceFunction)


class JsonSchemaFormat(_JsonView):
    """A schema by which a completion has to validate."""

    name = _Field(str)
    schema = _Field[dict[str, Any]](dict)
    description = _Field[str | None](str)
    strict = _Field[bool | None](bool)


# Messages of a request


class ChatRequestMessage(_JsonView):
    """A message of the conversation."""

    role = _Field(_role)


class SystemMessage(ChatRequestMessage, positional="content", role="system"):
    """What the model is told before the conversation."""

    content = _Field(str)


class DeveloperMessage(ChatRequestMessage, positional="content", role="developer"):
    """A system message by another name."""

    content = _Field(str)


class UserMessage(ChatRequestMessage, positional="content", role="user"):
    """What the user says: text, or a list of content items."""

    content = _Field(_content)


class AssistantMessage(ChatRequestMessage, positional="content", role="assistant"):
    """What the assistant said."""

    content = _Field[str | None](str)
    tool_calls = _Field[list[ChatCompletionsToolCall] | None](_each(ChatCompletionsToolCall))


class ToolMessage(ChatRequestMessage, positional="content", role="tool"):
    """What a tool gave."""

    content = _Field[str | None](str)
    tool_call_id = _Field(str)


# Answers


class CompletionsUsage(_JsonView):
    """Tokens of a request and its answer."""

    completion_tokens = _Field(int)
    prompt_tokens = _Field(int)
    total_tokens = _Field(int)


class ChatResponseMessage(_JsonView):
    """What the assistant says."""

    role = _Field(_role)
    content = _Field(str)
    tool_calls = _Field[list[ChatCompletionsToolCall] | None](_each(ChatCompletionsToolCall))


class ChatChoice(_JsonView):
    """One completion."""

    index = _Field(int)
    finish_reason = _Field(_reason)
    message = _Field(ChatResponseMessage)


class ChatCompletions(_JsonView):
    """The answer to a request."""

    id = _Field(str)
    created = _Field(_time)
    model = _Field(str)
    choices = _Field(_each(ChatChoice))
    usage = _Field(CompletionsUsage)

    def __str__(self) -> str:
        return json.dumps(self._json, indent=2)


class StreamingChatResponseToolCallUpdate(_JsonView):
    """What a chunk says of a tool call."""

    id = _Field(str)
    function = _Field(FunctionCall)


class StreamingChatResponseMessageUpdate(_JsonView):
    """What a chunk adds to a message."""

    role = _Field[ChatRole | str | None](_role)
    content = _Field[str | None](str)
    tool_calls = _Field[list[StreamingChatResponseToolCallUpdate] | None](
        _each(StreamingChatResponseToolCallUpdate)
    )


class StreamingChatChoiceUpdate(_JsonView):
    """What a chunk adds to one completion."""

    index = _Field(int)
    finish_reason = _Field[CompletionsFinishReason | str | None](_reason)
    delta = _Field(StreamingChatResponseMessageUpdate)


class StreamingChatCompletionsUpdate(_JsonView):
    """A chunk of a streamed answer; the last has the usage."""

    id = _Field(str)
    created = _Field(_time)
    model = _Field(str)
    choices = _Field(_each(StreamingChatChoiceUpdate))
    usage = _Field[CompletionsUsage | None](CompletionsUsage)


class ModelInfo(_JsonView):
    """What the model is."""

    model_name = _Field(str)
    model_type = _Field(str)
    model_provider_name = _Field(str)
