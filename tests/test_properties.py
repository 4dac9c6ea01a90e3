"""What holds for any input: generated images, prompts, stop strings, schemas and requests."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

import phi_edge
from phi_edge import ImageError
from phi_edge.api.conversation import make_conversation
from phi_edge.api.http import Request
from phi_edge.api.parse import parse_request
from phi_edge.api.routes import Routes
from phi_edge.api.service import ChatService
from phi_edge.generation.constraint import JsonGrammar, SchemaError
from phi_edge.image.crops import CROP_SIZE, ImageCrops, padded_size
from phi_edge.image.files import open_image
from phi_edge.text.detokenizer import Detokenizer
from phi_edge.text.prompt import encode_prompt, longest_token, plain_text

from .fuzz.targets import CHAT_PATH, TARGETS, check_reply
from .helpers.strategies import (
    BODIES,
    FEW_TOKENS,
    FINITE_JSON,
    JSON,
    KINDS,
    LARGE,
    PARTS,
    SCHEMAS,
    SMALL,
    TEXTS,
    images,
)

CROPS = ImageCrops(np.zeros((2, 3, CROP_SIZE, CROP_SIZE), np.float32), (CROP_SIZE, CROP_SIZE))


# Images


def saved(image: Image.Image, kind: str) -> io.BytesIO:
    file = io.BytesIO()
    try:
        image.save(file, kind)
    except (OSError, ValueError, KeyError):
        reject()  # the format has no such mode or size
    file.seek(0)
    return file


@given(image=images(SMALL | LARGE), kind=st.sampled_from(KINDS), num_crops=st.integers(1, 4))
@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_any_image_file_gives_a_bounded_number_of_crops(
    model: phi_edge.Model, image: Image.Image, kind: str, num_crops: int
) -> None:
    try:
        crops = model.preprocess(open_image(saved(image, kind)), num_crops)
    except ImageError as error:
        assert "too long and thin" in str(error)  # noqa: PT017 - what else would be wrong with it?
        return
    assert 2 <= len(crops.pixel_values) <= num_crops + 1
    assert np.isfinite(crops.pixel_values).all()
    if kind != "ICO":  # which holds several sizes
        assert crops.image_size == padded_size(*image.size, num_crops)


@given(image=images(), place=st.integers(0, 2**32), change=st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_images_have_one_digest_if_and_only_if_the_model_sees_the_same(
    model: phi_edge.Model, image: Image.Image, place: int, change: int
) -> None:
    """The same pixels by another file, and one byte changed."""
    content = bytearray(image.tobytes())
    content[place % len(content)] ^= change
    changed = image.copy()
    changed.frombytes(bytes(content))
    try:
        crops, other = model.preprocess(image, 1), model.preprocess(changed, 1)
    except ImageError:
        reject()
    is_same = np.array_equal(crops.pixel_values, other.pixel_values)
    assert (crops.digest == other.digest) == is_same
    again = model.preprocess(open_image(saved(image.convert("RGB"), "PNG")), 1)
    assert (again.digest == crops.digest) == np.array_equal(again.pixel_values, crops.pixel_values)
    if not image.mode.startswith("I"):  # 16 bits are scaled, where Pillow cuts them off
        assert again.digest == crops.digest


# Prompts


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Any]) -> list[int]:
    request = parse_request({"messages": messages})
    conversation = make_conversation(
        request.messages, [], "all", "system", lambda text: plain_text(tokenizer, text)
    )
    ids = encode_prompt(tokenizer, conversation.text, [CROPS] * len(conversation.images)).input_ids
    return [int(token_id) for token_id in ids]


def message(role: str, parts: Sequence[str | None]) -> Any:
    """A message with the parts, of which only a user's may be images."""
    if role != "user":
        return {"role": role, "content": "".join(part or "" for part in parts)}
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    content = [image if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


@given(
    turns=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), PARTS), min_size=1)
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_no_text_makes_a_special_token(tokenizer: Tokenizer, turns: list[Any]) -> None:
    special = {*tokenizer.get_added_tokens_decoder(), *range(-99, 0)}

    def structure(messages: list[Any]) -> list[int]:
        return [token for token in prompt_ids(tokenizer, messages) if token in special]

    harmless = [(role, [part and "hello" for part in parts]) for role, parts in turns]
    assert structure([message(*turn) for turn in turns]) == structure(
        [message(*turn) for turn in harmless]
    )


@given(text=TEXTS)
def test_tokens_of_a_text_give_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    plain = plain_text(tokenizer, text)
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer.encode(plain, add_special_tokens=False).ids
    decoded = "".join(map(detokenizer.add, ids)) + detokenizer.finish()
    assert decoded == plain.replace("▁", " ")


@given(text=TEXTS | FEW_TOKENS, role=st.sampled_from(["user", "assistant"]))
@example(text="-" * 480, role="user")  # tokens of 16 characters
@example(text=" " * 480, role="assistant")  # which the special token takes away
def test_a_text_has_no_fewer_tokens_than_its_length_says(
    tokenizer: Tokenizer, text: str, role: str
) -> None:
    whole, empty = (len(prompt_ids(tokenizer, [message(role, [each])])) for each in (text, ""))
    # What stands around the text may be one token with its first or last character.
    assert len(text.strip()) // longest_token(tokenizer) <= whole - empty + 2


# Stop strings


@given(
    text=st.lists(st.sampled_from(["What", " is", " the", " sea", "é🙂"]), max_size=8).map("".join),
    slices=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=5),
    cuts=st.lists(st.integers(0, 40), max_size=6).map(sorted),
)
@example(text="is the", slices=[(2, 4), (4, 1)], cuts=[])  # " the", one token, and "h" in it
def test_a_stream_ends_before_the_first_stop_string(
    tokenizer: Tokenizer, text: str, slices: list[tuple[int, int]], cuts: list[int]
) -> None:
    """However the text is cut into tokens; most stop strings are parts of it."""
    stop = [text[start : start + length] or "e?" for start, length in slices]
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
    encodings = tokenizer.encode_batch(pieces, add_special_tokens=False)
    ids = [token_id for encoding in encodings for token_id in encoding.ids]
    plain, streaming = Detokenizer(tokenizer), Detokenizer(tokenizer, stop)
    whole = "".join(map(plain.add, ids)) + plain.finish()
    parts = [streaming.add(token_id) for token_id in ids] + [streaming.finish()]
    # Character by character: the first that is complete.
    ends = [end for end in range(len(whole) + 1) if whole[:end].endswith(tuple(stop) or "\0")]
    expected = whole
    if ends:
        longest = max((each for each in stop if whole[: ends[0]].endswith(each)), key=len)
        expected = whole[: ends[0] - len(longest)]
    assert "".join(parts) == expected
    assert streaming.stopped == bool(ends)
    assert not any(each in "".join(parts) for each in stop)


# Schemas


@pytest.fixture(scope="module")
def grammar(model: phi_edge.Model) -> JsonGrammar:
    info = model.manifest.model
    return JsonGrammar(model.tokenizer, info.vocab_size, info.eos_token_ids)


@given(schema=SCHEMAS | st.dictionaries(st.text(max_size=5), FINITE_JSON), seed=st.integers(0, 9))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_schema_is_followed_or_refused(grammar: JsonGrammar, schema: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    try:
        constraint = grammar.constrain(schema)
        for _ in range(8):
            allowed = np.flatnonzero(constraint.allowed())
            if len(allowed) == 0:
                break
            constraint.accept(int(rng.choice(allowed)))
    except SchemaError as error:
        assert 0 < len(str(error)) < 1000  # noqa: PT017


# Requests


@given(body=BODIES | JSON)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_request_is_answered_or_refused(service: ChatService, body: Any) -> None:
    """Never with a failure of the server, and always in the API's shape."""
    content = json.dumps(body).encode()
    check_reply(Routes(service).respond(Request("POST", CHAT_PATH, {}, content)))


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(name: str, data: st.DataObject) -> None:
    """What atheris runs for hours, for a moment."""
    target, seeds = TARGETS[name]
    content = bytearray(data.draw(st.sampled_from(seeds())))
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    target(bytes(content))
