"""The request: its fields and their ranges.

Sources: the Azure AI model inference API's reference for chat completions, and OpenAI's for the
fields that only that one has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from phi_edge.generation.drafting import DRAFT_TOKENS
from phi_edge.generation.options import GenerationOptions, SharedOptions

# Far above what clients send, and low enough that no request costs much before it is refused.
MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TOOLS = 128  # as OpenAI's API has it
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
# Branches of the two kinds of content; they are no part of a field's name.
STRING, PARTS = "content as a string", "content as parts"


class _Fields(BaseModel):
    """JSON types are taken as they are: "1" is no number, and true is none either."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _Part(_Fields):
    # Fields that other models know may come along with a part.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class TextPart(_Part):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """Where an image is, and how closely to look at it."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Part):
    """An image of a message."""

    type: Literal["image_url"]
    # The short name is that of early Azure SDKs, and of the JavaScript in articles about them.
    image_url: ImageUrl = Field(validation_alias=AliasChoices("image_url", "image"))


class FunctionCall(_Part):
    """A function that the model called; its arguments are JSON text."""

    name: str
    arguments: str


class ToolCall(_Part):
    """A tool that the model called."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
# With a discriminator, what is wrong with a list of parts is not hidden by its being no string.
Content = Annotated[
    Annotated[str, Tag(STRING)] | Annotated[list[Part], Tag(PARTS), Field(max_length=MAX_PARTS)],
    Discriminator(lambda content: STRING if isinstance(content, str) else PARTS),
]


class Message(_Part):
    """One message of the conversation.

    Attributes:
        content: Text, or parts; None where an assistant's message has tool calls alone.
        tool_calls: What an assistant's message called.
        tool_call_id: The call that a tool's message answers.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content")
        if self.images and self.role != "user":
            raise ValueError("only user messages can have images")
        return self

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """The content as parts."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content or []

    @property
    def images(self) -> list[ImagePart]:
        """The parts that are images."""
        return [part for part in self.parts if isinstance(part, ImagePart)]


class Function(_Part):
    """A function that the model may call; its parameters are a JSON schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Part):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(_Part):
    """The name of a function."""

    name: str


class NamedTool(_Part):
    """The one tool to call."""

    type: Literal["function"] = "function"
    function: FunctionName


class JsonSchema(_Part):
    """A schema by which the completion has to validate."""

    name: str = "schema"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Part):
    """What the completion has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and only with it")
        return self


class StreamOptions(_Part):
    """What a stream holds besides the completion."""

    include_usage: bool = False


def _read_number(value: object) -> object:
    """Articles about the Azure SDK for JavaScript write penalties as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Penalty = Annotated[float, BeforeValidator(_read_number), Field(ge=-2, le=2)]
StopString = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class ChatRequest(SharedOptions, _Fields):
    """A chat completions request. Here are the API's own fields, and ranges where these differ.

    Attributes:
        logit_bias: Token id, as text, -> what is added to its logit.
        n: Choices; they share one prefill.
        seed: Makes draws repeatable; choice k draws with the seed plus k.
    """

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str | None = None
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    draft_tokens: int = Field(DRAFT_TOKENS, ge=0, le=DRAFT_TOKENS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] = {}
    n: int = Field(1, ge=1, le=128)
    tools: list[Tool] = Field([], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if "" in self.stop_strings:
            raise ValueError("a stop string cannot be empty")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            if all(tool.function.name != name for tool in self.tools):
                raise ValueError(f"tool_choice names {name!r}, which is not among the tools")
        return self

    @property
    def stop_strings(self) -> list[str]:
        """The texts that end a completion."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def token_limit(self) -> int | None:
        """Most tokens of a choice, by either of its names."""
        limits = (self.max_tokens, self.max_completion_tokens)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def may_call_tool(self) -> bool:
        """Whether the answer can be a call."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def must_call_tool(self) -> bool:
        """Whether the answer has to be a call."""
        return bool(self.tools) and self.tool_choice not in (None, "none", "auto")

    def options(self, json_schema: Mapping[str, Any] | None) -> GenerationOptions:
        """Tell how the choices are generated, bound to a schema if there is one."""
        fields = {name: getattr(self, name) for name in SharedOptions.model_fields}
        fields["max_tokens"] = self.token_limit
        if self.top_p == 0:  # which still keeps the most likely token
            fields |= {"top_p": 1.0, "temperature": 0.0}
        return GenerationOptions(
            **fields,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            stop=self.stop_strings,
            num_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            json_schema=json_schema,
            n=self.n,
        )
