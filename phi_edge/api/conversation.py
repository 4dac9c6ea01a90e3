"""The messages of a request -> a prompt in the model's chat template, with its images.

The reference article's rules: a system message becomes a user message; a message has one image at
most, and only the conversation's last image is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from phi_edge.errors import HttpResponseError
from phi_edge.text.prompt import chat_text

from .request import ImagePart, Message, TextPart, Tool

ImagePolicy = Literal["last", "all"]
SystemRole = Literal["user", "system"]


class PlacedImage(NamedTuple):
    """An image of the conversation, and the request's field that names it."""

    part: ImagePart
    field: str


class Conversation(NamedTuple):
    """A prompt's text with a tag an image, and the images in the order of their tags."""

    text: str
    images: list[PlacedImage]


def make_conversation(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    image_policy: ImagePolicy,
    system_role: SystemRole,
    plain: Callable[[str], str],
) -> Conversation:
    """Put the messages into the chat template.

    Args:
        messages: Oldest first.
        tools: What the model may call; described to it in a system message.
        image_policy: "last": one image a message, and only the last image of the conversation
            stays in it. "all": any number, all kept, as the model itself takes them.
        system_role: The role that system messages get.
        plain: Makes ordinary text of special tokens, which no message may bring along.

    Raises:
        HttpResponseError: 400; more images than the policy allows.
    """
    images: list[PlacedImage] = []
    turns: list[tuple[str, str]] = []
    if tools:
        turns.append((system_role, plain(_describe_tools(tools))))
    last = max((at for at, message in enumerate(messages) if message.images), default=None)
    for at, message in enumerate(messages):
        if image_policy == "last" and len(message.images) > 1:
            raise HttpResponseError(
                400,
                f"messages[{at}] has {len(message.images)} images, and this model takes one a "
                'message; the image policy "all" takes more',
                code="too_many_images",
                param=f"messages[{at}].content",
            )
        keeps_images = image_policy == "all" or at == last
        turns.append(_make_turn(message, at, images, system_role, plain, keeps_images=keeps_images))
    return Conversation(chat_text(turns), images)


def _make_turn(
    message: Message,
    at: int,
    images: list[PlacedImage],
    system_role: SystemRole,
    plain: Callable[[str], str],
    *,
    keeps_images: bool,
) -> tuple[str, str]:
    """Make (role, content) of a message, and add its images to `images`."""
    content, text = "", ""  # what precedes the last image tag, and the text after it
    for index in _order(message.parts):
        part = message.parts[index]
        if isinstance(part, TextPart):
            text += part.text
        elif keeps_images:
            images.append(PlacedImage(part, f"messages[{at}].content[{index}].image_url.url"))
            # Text is made plain as a whole, since a token may be spread over two parts.
            content += f"{plain(text)}<|image_{len(images)}|>\n"
            text = ""
    for call in message.tool_calls or ():
        text += _describe_call(call.function.name, call.function.arguments)
    content += plain(text)
    if message.role in ("system", "developer"):
        return system_role, content
    if message.role == "tool":
        return "user", f"The tool's result: {content}"
    return message.role, content


def _order(parts: Sequence[TextPart | ImagePart]) -> list[int]:
    """Images before the text, as the model was trained, unless text stands between them."""
    images = [index for index, part in enumerate(parts) if isinstance(part, ImagePart)]
    if not images or images[-1] - images[0] >= len(images):
        return list(range(len(parts)))
    return images + [index for index in range(len(parts)) if index not in images]


def _describe_call(name: str, arguments: str) -> str:
    """Write a call as the model is asked to."""
    return f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'


def _describe_tools(tools: Sequence[Tool]) -> str:
    described = [tool.function.model_dump(exclude_none=True) for tool in tools]
    example = _describe_call("NAME", "{...}")
    return (
        f"You can call these functions: {json.dumps(described)}\n"
        f"To call one, answer with nothing but JSON: {example}"
    )
