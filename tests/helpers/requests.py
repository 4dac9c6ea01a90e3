"""Chat completions requests, and what answers say."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from phi_edge.api.parse import parse_request
from phi_edge.api.response import Chunk, Completion
from phi_edge.api.service import ChatService

Body = dict[str, Any]

USER: Body = {"role": "user", "content": "What is the sea?"}
WEATHER: Body = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
# A schema that leaves little to choose.
SCHEMA: Body = {
    "type": "object",
    "properties": {"answer": {"enum": ["green", "pink"]}, "n": {"type": "integer"}},
    "required": ["answer", "n"],
    "additionalProperties": False,
}


def body(**fields: Any) -> Body:
    return {"messages": [USER], "max_tokens": 6, **fields}


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image_part(image: Image.Image, **fields: str) -> Body:
    return {"type": "image_url", "image_url": {"url": data_url(image), **fields}}


def json_format(schema: Body) -> Body:
    """The `response_format` of answers that follow a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def complete(service: ChatService, **fields: Any) -> Completion:
    return service.complete(parse_request(body(**fields)))


def text(completion: Completion, index: int = 0) -> str:
    return completion["choices"][index]["message"]["content"] or ""


def streamed_text(chunks: Sequence[Chunk], index: int = 0) -> str:
    choices = [chunk["choices"][0] for chunk in chunks]
    return "".join(c["delta"].get("content", "") for c in choices if c["index"] == index)
