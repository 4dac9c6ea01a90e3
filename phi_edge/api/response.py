"""The bodies of answers, as the API's JSON has them."""

from __future__ import annotations

from typing import Literal

from typing_extensions import NotRequired, TypedDict

FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]


class TopLogprob(TypedDict):
    """One of the most likely tokens of a position; `bytes` are those of its text."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the completion, with the most likely ones at its position."""

    top_logprobs: list[TopLogprob]


class Logprobs(TypedDict):
    """Log probabilities of a completion's tokens, of the model's own distribution."""

    content: list[TokenLogprob]


class FunctionCall(TypedDict):
    """A function with its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a tool; `index` stands in streams."""

    id: str
    type: Literal["function"]
    function: FunctionCall
    index: NotRequired[int]


class AnswerMessage(TypedDict):
    """What the assistant says; the content is None where it calls a tool."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ToolCall] | None


class Choice(TypedDict):
    """One completion."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: Logprobs | None


class Usage(TypedDict):
    """Tokens, image slots and end tokens included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(TypedDict):
    """The answer to a chat completions request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(TypedDict, total=False):
    """What a chunk adds to the message."""

    role: Literal["assistant"]
    content: str
    tool_calls: list[ToolCall]


class ChunkChoice(TypedDict):
    """What a chunk adds to one completion."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: Logprobs | None


class Chunk(TypedDict):
    """A piece of a streamed answer; the last has the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


class ModelDescription(TypedDict):
    """What `/info` says."""

    model_name: str
    model_type: Literal["chat-completions"]
    model_provider_name: str


class ModelCard(TypedDict):
    """What `/v1/models/{model}` says."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """What `/v1/models` says."""

    object: Literal["list"]
    data: list[ModelCard]
