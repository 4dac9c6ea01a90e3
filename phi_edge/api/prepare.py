"""A request -> a generation that can begin: all that can be wrong with it is found before."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from phi_edge.cancel import CancelToken
from phi_edge.errors import HttpResponseError, MemoryLimitError, PromptError
from phi_edge.generation import Generation
from phi_edge.generation.constraint import SchemaError
from phi_edge.image.crops import DETAIL_CROPS, count_tokens, padded_size
from phi_edge.image.files import decode_image
from phi_edge.loaded_model import Model
from phi_edge.text.prompt import Prompt, longest_token, plain_text

from .conversation import Conversation, ImagePolicy, SystemRole, make_conversation
from .images import naming, read_image
from .request import ChatRequest, NamedTool, Tool
from .safety import ContentFilter, PromptFilteredError


@dataclasses.dataclass(frozen=True)
class Job:
    """A request that was found good.

    Attributes:
        request: The request.
        schema_field: The field that says what the completion has to validate by, if one does.
        generation: Its completions, of which nothing is done yet.
    """

    request: ChatRequest
    schema_field: str
    generation: Generation


@dataclasses.dataclass
class Preparer:
    """Turns requests into jobs; its fields are `ChatService`'s arguments."""

    model: Model
    image_policy: ImagePolicy
    system_role: SystemRole
    content_filters: Sequence[ContentFilter]
    allowed_image_hosts: Collection[str]
    num_crops: int | None
    max_ttft_ms: float | None

    def __post_init__(self) -> None:
        self._longest_token = longest_token(self.model.tokenizer)

    def prepare(self, request: ChatRequest, cancel: threading.Event | None) -> Job:
        """Encode a request's prompt and begin its generation.

        Raises:
            HttpResponseError: 400; it says what is wrong with the request.
        """
        # First what costs nothing: to tokenize a hopeless text, or decode its images, takes long.
        num_text_tokens = self._least_text_tokens(request)
        self._check_context(request, num_text_tokens)
        tools = request.tools if request.tool_choice != "none" else []
        conversation = make_conversation(
            request.messages,
            tools,
            self.image_policy,
            self.system_role,
            functools.partial(plain_text, self.model.tokenizer),
        )
        if any(content_filter.finds(conversation.text) for content_filter in self.content_filters):
            raise PromptFilteredError
        images = [
            read_image(part.image_url.url, field, self.allowed_image_hosts)
            for part, field in conversation.images
        ]
        num_crops = self._choose_crops(request, conversation, images)
        num_image_tokens = _least_image_tokens(conversation, images, num_crops)
        self._check_context(request, num_text_tokens + num_image_tokens)
        prompt = self._encode(conversation, images, num_crops)
        self._check_context(request, prompt.num_tokens, known="")
        return self._begin(request, prompt, cancel or CancelToken())

    def _begin(self, request: ChatRequest, prompt: Prompt, cancel: threading.Event) -> Job:
        schema, schema_field = _schema(request)
        try:
            with naming_schema(schema_field):
                options = request.options(schema)
                generation = self.model.generate(prompt, options, cancel=cancel)
        except MemoryLimitError as error:
            raise HttpResponseError(400, str(error), code="memory_limit_exceeded") from None
        except ValueError as error:
            field, colon, _ = str(error).partition(":")
            raise HttpResponseError(400, str(error), param=field if colon else None) from None
        return Job(request, schema_field, generation)

    def _encode(
        self, conversation: Conversation, images: Sequence[Image.Image], num_crops: Sequence[int]
    ) -> Prompt:
        crops = []
        # One after another: decoded, an image may take 200 MB.
        for image, most, (_, field) in zip(images, num_crops, conversation.images, strict=True):
            with naming(field):
                crops.append(self.model.preprocess(decode_image(image), most))
        try:
            return self.model.encode_prompt(conversation.text, crops)
        except PromptError as error:
            raise HttpResponseError(400, f"messages: {error}", param="messages") from None

    def _choose_crops(
        self, request: ChatRequest, conversation: Conversation, images: Sequence[Image.Image]
    ) -> list[int]:
        """Choose the most sub crops of each image by its `detail`."""
        return self.model.choose_crops(
            images,
            [
                DETAIL_CROPS[part.image_url.detail] or self.num_crops
                for part, _ in conversation.images
            ],
            text=conversation.text,
            max_tokens=request.token_limit,
            max_ttft_ms=self.max_ttft_ms,
        )

    def _least_text_tokens(self, request: ChatRequest) -> int:
        """Count the text's tokens, as a lower bound; see `longest_token`."""
        texts = [part for each in request.messages for part in each.parts if part.type == "text"]
        return sum(len(part.text.strip()) for part in texts) // self._longest_token

    def _check_context(
        self, request: ChatRequest, num_tokens: int, known: str = "at least "
    ) -> None:
        """Refuse a prompt of so many tokens, or "at least" so many, if the context is shorter."""
        context_length = self.model.manifest.model.context_length
        wanted = request.token_limit or 1
        if num_tokens + wanted > context_length:
            raise HttpResponseError(
                400,
                f"the prompt has {known}{num_tokens:,} tokens and {wanted:,} are asked for, "
                f"{num_tokens + wanted:,} together; this model's context holds "
                f"{context_length:,}: shorten the messages, lower an image's `detail`, or lower "
                "max_tokens",
                code="context_length_exceeded",
                param="messages" if num_tokens >= context_length else "max_tokens",
            )


def _least_image_tokens(
    conversation: Conversation, images: Sequence[Image.Image], num_crops: Sequence[int]
) -> int:
    """Count the images' tokens, lying or standing, from their headers; EXIF may turn them."""
    num_tokens = 0
    for image, most, (_, field) in zip(images, num_crops, conversation.images, strict=True):
        with naming(field):
            height, width = padded_size(*image.size, most)
        num_tokens += min(count_tokens((height, width)), count_tokens((width, height)))
    return num_tokens


def _schema(request: ChatRequest) -> tuple[dict[str, Any] | None, str]:
    """Find what the completion has to validate by, and the field that says so."""
    if request.must_call_tool:
        choice = request.tool_choice
        tools = request.tools
        if isinstance(choice, NamedTool):
            tools = [tool for tool in tools if tool.function.name == choice.function.name]
        return {"anyOf": [_call_schema(tool) for tool in tools]}, "tools"
    response_format = request.response_format
    if response_format is None or response_format.type == "text":
        return None, ""
    if response_format.json_schema is None:
        return {"type": "object"}, "response_format"
    return response_format.json_schema.schema_, "response_format.json_schema.schema"


def _call_schema(tool: Tool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.function.name},
            "arguments": {**(tool.function.parameters or {}), "type": "object"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


@contextmanager
def naming_schema(field: str) -> Iterator[None]:
    """Say of what is wrong with a schema which field it stands in."""
    try:
        yield
    except SchemaError as error:
        raise HttpResponseError(400, f"{field}: {error}", param=field) from None
