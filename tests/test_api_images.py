"""Images of a request: where they stand, how many crops they get, which are kept."""

from __future__ import annotations

import pytest
from PIL import Image

import phi_edge
from phi_edge import HttpResponseError
from phi_edge.api.service import ChatService

from .conftest import GoldenSet
from .helpers.requests import (
    complete,
    image_part,
    text,
)


def test_an_image_stands_before_its_text(
    service: ChatService, model: phi_edge.Model, compact: GoldenSet
) -> None:
    image = compact.image("wide_90x60")
    parts = [{"type": "text", "text": "What is it?"}, image_part(image, detail="low")]
    answer = complete(service, messages=[{"role": "user", "content": parts}], max_tokens=4)
    prompt = model.encode_prompt(
        "<|user|>\n<|image_1|>\nWhat is it?<|end|>\n<|assistant|>\n", [image], num_crops=1
    )
    expected = "".join(event.text for event in model.generate(prompt, max_tokens=4))
    assert answer["usage"]["prompt_tokens"] == prompt.num_tokens
    assert text(answer) == expected


def test_detail_says_how_many_crops(service: ChatService) -> None:
    image = Image.new("RGB", (640, 480))

    def num_tokens(**fields: str) -> int:
        messages = [{"role": "user", "content": [image_part(image, **fields)]}]
        return complete(service, messages=messages, max_tokens=1)["usage"]["prompt_tokens"]

    auto, more = num_tokens(), num_tokens(detail="high")
    assert num_tokens(detail="auto") == auto
    assert auto - num_tokens(detail="low") == 757 - 313
    assert more - auto == 1921 - 757


def test_only_the_last_image_is_kept(model: phi_edge.Model, compact: GoldenSet) -> None:
    one, two = (image_part(compact.image(name), detail="low") for name in ("wide_90x60",) * 2)
    messages = [
        {"role": "user", "content": [one, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "That."},
        {"role": "user", "content": [two, {"type": "text", "text": "And now?"}]},
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": "Why?"},
    ]
    last, everything = (
        complete(ChatService(model, image_policy=policy), messages=messages)["usage"]
        for policy in ("last", "all")
    )
    num_slots = 313
    assert everything["prompt_tokens"] - last["prompt_tokens"] >= num_slots


def test_more_than_one_image_a_message(model: phi_edge.Model, compact: GoldenSet) -> None:
    part = image_part(compact.image("wide_90x60"), detail="low")
    messages = [{"role": "user", "content": [part, part]}]
    with pytest.raises(HttpResponseError, match="one a message") as raised:
        complete(ChatService(model), messages=messages)
    assert raised.value.param == "messages[0].content"
    assert complete(ChatService(model, image_policy="all"), messages=messages)["choices"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.com/x.png", "not fetched from example.com"),
        ("file:///etc/passwd", "data URL"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:image/png;base64,AAAA", "not an image"),
        ("data:text/plain;base64,AAAA", "data URL"),
    ],
)
def test_images_that_are_refused(service: ChatService, url: str, reason: str) -> None:
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(HttpResponseError, match=reason) as raised:
        complete(service, messages=[{"role": "user", "content": parts}])
    assert raised.value.status_code == 400
    assert raised.value.param == "messages[0].content[1].image_url.url"
