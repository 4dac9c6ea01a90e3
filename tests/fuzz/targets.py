"""What bytes from outside are tried on: the decoders of images and of requests.

A target returns where the bytes are good or are refused as they should be, and raises otherwise.
"body" makes JSON of the bytes, where "request" rarely gets beyond what is no JSON.
`python -m tests.fuzz` drives them with atheris, and `tests/test_properties.py` with hypothesis.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import given
from PIL import Image
from pydantic import TypeAdapter

import phi_edge
from phi_edge import ImageError
from phi_edge.api.http import Reply, Request
from phi_edge.api.pieces import Piece
from phi_edge.api.response import Chunk, Completion
from phi_edge.api.routes import Routes
from phi_edge.api.service import ChatService
from phi_edge.image.crops import CROP_SIZE, hd_image
from phi_edge.image.files import open_image
from tests.helpers.strategies import BODIES, JSON

Target = Callable[[bytes], object]

CHAT_PATH = "/v1/chat/completions"
_NUM_CROPS = 2
_COMPLETION, _CHUNK = TypeAdapter(Completion), TypeAdapter(Chunk)


def decode_image(data: bytes) -> None:
    """Read an image file as a request's is read."""
    try:
        pixels = hd_image(open_image(io.BytesIO(data)), _NUM_CROPS)
    except ImageError as error:
        assert "0x" not in str(error)  # noqa: PT017
        return
    height, width, channels = pixels.shape
    assert channels == 3
    assert height % CROP_SIZE == width % CROP_SIZE == 0
    assert 1 <= height * width // CROP_SIZE**2 <= _NUM_CROPS


def decode_request(data: bytes) -> None:
    """Read a request's body and check the reply, which a fixed text stands in for."""
    check_reply(_routes().respond(Request("POST", CHAT_PATH, {}, data)))


@given(body=BODIES | JSON)
def decode_body(body: Any) -> None:
    """As `decode_request`, of bytes that choose a request's fields."""
    decode_request(json.dumps(body).encode())


class _Parrot(ChatService):
    """Says the same whatever it is asked; a model is needed to read requests."""

    def _pieces(self, job: Any) -> Iterator[tuple[int, Piece]]:
        for index in range(job.request.n):
            yield index, Piece()
            yield index, Piece("Hello.", finish_reason="stop")


@functools.cache
def _routes() -> Routes:
    return Routes(_Parrot(phi_edge.load_model(), image_policy="all"))


def check_reply(reply: Reply) -> None:
    """Check that a reply has the API's shape, an answer's or an error's, and is no failure."""
    if not isinstance(reply.body, bytes):
        *events, last, end = b"".join(reply.body).split(b"\n\n")
        assert (reply.status, last, end) == (200, b"data: [DONE]", b"")
        for event in events:
            chunk = _read_json(event.removeprefix(b"data: "))
            if "error" in chunk:  # found while the stream was running
                _check_error(chunk["error"])
            else:
                _CHUNK.validate_python({k: v for k, v in chunk.items() if v is not None})
        return
    answer = _read_json(reply.body)
    if reply.status == 200:
        _COMPLETION.validate_python(answer)
        return
    _check_error(answer["error"])
    assert answer["error"]["status"] == reply.status


def _check_error(error: dict[str, Any]) -> None:
    assert 400 <= error["status"] < 500, error
    assert error["message"]
    assert len(error["message"]) < 2000


def _read_json(content: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(content, parse_constant=refuse)


def image_seeds() -> list[bytes]:
    """A small image of every kind, to begin with."""
    seeds = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO"):
        for mode in ("RGB", "L", "RGBA", "P", "CMYK", "1", "I;16"):
            file = io.BytesIO()
            try:
                Image.new(mode, (20, 12)).save(file, kind)
            except (OSError, ValueError, KeyError):  # the format has no such mode
                continue
            seeds.append(file.getvalue())
    return seeds


def request_seeds() -> list[bytes]:
    """Requests with every field, to begin with."""
    user = {"role": "user", "content": "Hi"}
    parts = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    schema = {"name": "s", "schema": {"type": "string", "pattern": "^a$"}, "strict": True}
    bodies: list[dict[str, Any]] = [
        {"messages": [user]},
        {"messages": [{"role": "user", "content": parts}], "max_tokens": 1, "stream": True},
        {"messages": [user], "tools": [tool], "tool_choice": "required", "n": 2, "seed": 1},
        {"messages": [user], "response_format": {"type": "json_schema", "json_schema": schema}},
        {"messages": [user], "stop": ["a"], "logprobs": True, "top_logprobs": 2, "top_p": 0.5},
        {"messages": [user], "logit_bias": {"5": 1}, "temperature": 1, "presence_penalty": "1"},
    ]
    return [json.dumps(body).encode() for body in bodies]


TARGETS: dict[str, tuple[Target, Callable[[], list[bytes]]]] = {
    "image": (decode_image, image_seeds),
    "request": (decode_request, request_seeds),
    "body": (decode_body.hypothesis.fuzz_one_input, lambda: [bytes(1000)]),  # type: ignore[attr-defined]
}
