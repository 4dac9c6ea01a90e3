"""What holds for any input: generated images, prompts, stop strings, schemas and requests."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

import phi_edge
from phi_edge import ImageError
from phi_edge.api.conversation import make_conversation
from phi_edge.api.request import parse_request
from phi_edge.api.routes import Request, Routes
from phi_edge.api.service import ChatService
from phi_edge.constraint import JsonGrammar, SchemaError
from phi_edge.image import CROP_SIZE, ImageCrops, padded_size
from phi_edge.image_file import open_image
from phi_edge.prompt import TokenBound, encode_prompt, plain_text
from phi_edge.text import Detokenizer

from .conftest import REFERENCE_FILES
from .fuzz.targets import CHAT_PATH, TARGETS, check_reply

Draw = Callable[[st.SearchStrategy[Any]], Any]

CROPS = ImageCrops(np.zeros((2, 3, CROP_SIZE, CROP_SIZE), np.float32), (CROP_SIZE, CROP_SIZE))


@pytest.fixture(scope="module", params=["tiny", "phi3"])
def tokenizer(request: pytest.FixtureRequest, model: phi_edge.Model) -> Tokenizer:
    if request.param == "tiny":
        return model.tokenizer
    if not REFERENCE_FILES.is_dir():
        pytest.skip("the real tokenizer is not at ../shared")
    return Tokenizer.from_file(str(REFERENCE_FILES / "tokenizer.json"))


# Images

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]
KINDS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO"]
SMALL = st.integers(1, 70)
LARGE = st.sampled_from([335, 336, 337, 1000, 4000])


@st.composite
def images(draw: Draw, sides: st.SearchStrategy[int] = SMALL) -> Image.Image:
    """An image of any mode with random pixels."""
    mode, width, height = draw(st.sampled_from(MODES)), draw(sides), draw(sides)
    image = Image.new(mode, (width, height))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    image.frombytes(rng.bytes(len(image.tobytes())))
    if mode == "P":
        image.putpalette(rng.bytes(768))
    return image


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

PIECES = ["<|end|>", "<|user|>", "<|assistant|>", "<s>", "</s>", "<unk>", "<|image_1|>", "<0x0A>"]
PIECES += ["<|", "|>", "<", ">", "image_", "1", "end", " ", "\n", "▁", "\x00", "\ufeff", "é", "🙂"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join)
PARTS = st.lists(TEXTS | st.none(), min_size=1, max_size=4)  # None is an image


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


@given(text=TEXTS | st.text("ab 🙂\n\x1f", max_size=200))
def test_a_text_has_no_fewer_tokens_than_it_is_said_to(tokenizer: Tokenizer, text: str) -> None:
    assert TokenBound(tokenizer)(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids)


# Stop strings


@given(
    text=st.text("abc é🙂", max_size=30),
    stop=st.lists(st.text("abc é🙂", min_size=1, max_size=5), max_size=4),
    data=st.data(),
)
def test_a_stream_ends_before_the_first_stop_string(
    tokenizer: Tokenizer, text: str, stop: list[str], data: st.DataObject
) -> None:
    """However the text is cut into tokens."""
    ids: list[int] = []
    for piece in pieces_of(text, data):
        ids += tokenizer.encode(piece, add_special_tokens=False).ids
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


def pieces_of(text: str, data: st.DataObject) -> list[str]:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


# Schemas

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)
FINITE_JSON = JSON.filter(lambda value: not re.search("NaN|Infinity", json.dumps(value)))
TYPES = ["string", "integer", "number", "object", "array", "boolean", "null"]
PATTERNS = st.sampled_from(["^a$", "a.*b", "(", "[0-9]{2,3}", r"\p{L}+", "", "^(a|b)*$"])
NUMBERS = st.integers(-5, 10**6) | st.floats(allow_nan=False, allow_infinity=False)


def some_of(values: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """A few fields, one of which may be anything."""

    def fields(names: set[str]) -> st.SearchStrategy[dict[str, Any]]:
        good = st.fixed_dictionaries({name: values[name] for name in sorted(names)})
        one = st.dictionaries(st.sampled_from(sorted(values)), FINITE_JSON, max_size=1)
        return good | st.tuples(good, one).map(lambda pair: {**pair[0], **pair[1]})

    return st.sets(st.sampled_from(sorted(values)), max_size=4).flatmap(fields)


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A schema of some of the keywords."""
    several = st.lists(inner, max_size=3)
    values: dict[str, st.SearchStrategy[Any]] = {
        "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), max_size=3),
        "properties": st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=3),
        "required": st.lists(st.text("ab", max_size=2), max_size=3),
        "items": inner,
        "prefixItems": several,
        "additionalProperties": inner | st.booleans(),
        "anyOf": several,
        "oneOf": several,
        "allOf": several,
        "enum": st.lists(FINITE_JSON, max_size=3),
        "const": FINITE_JSON,
        "pattern": PATTERNS,
        "format": st.sampled_from(["date", "email", "uuid", "uri", "nothing"]),
        "$ref": st.sampled_from(["#", "#/$defs/a", "#/properties/a", "http://127.0.0.1/x"]),
        "$defs": st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        **dict.fromkeys(["minimum", "maximum", "multipleOf", "exclusiveMinimum"], NUMBERS),
        **dict.fromkeys(["minLength", "maxLength", "minItems", "maxItems"], st.integers(-1, 10**9)),
    }
    return some_of(values)


SCHEMAS = st.recursive(st.just({}) | keywords(st.just({})), keywords, max_leaves=6)


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

USER = {"role": "user", "content": "Hi"}
IMAGE = "data:image/gif;base64,R0lGODdhAQABAIAAAAAAAP///ywAAAAAAQABAAACAkQBADs="
URLS = st.sampled_from([IMAGE, "data:image/png;base64,AAAA", "http://[", "file:///x", ""])
PART = st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}) | st.fixed_dictionaries(
    {
        "type": st.just("image_url"),
        "image_url": st.fixed_dictionaries(
            {"url": URLS}, optional={"detail": st.sampled_from(["low", "auto", "high", "?"])}
        ),
    }
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "?"])},
    optional={"content": TEXTS | st.lists(PART, max_size=3), "tool_calls": st.lists(JSON)},
)
TOOL = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.sampled_from(["f", "g", "no name"])},
            optional={"description": TEXTS, "parameters": SCHEMAS},
        ),
    }
)
NAMED = {"type": "function", "function": {"name": "f"}}
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2) | st.integers(-1, 3),
    "top_p": st.floats(0, 1),
    "stop": TEXTS | st.lists(TEXTS, max_size=3),
    "presence_penalty": st.floats(-2, 2) | st.sampled_from(["1.5", "nan"]),
    "frequency_penalty": st.floats(-2, 2),
    "seed": st.integers(),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}])
    | st.fixed_dictionaries(
        {
            "type": st.just("json_schema"),
            "json_schema": st.fixed_dictionaries({"schema": SCHEMAS}),
        }
    ),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 21),
    "logit_bias": st.dictionaries(st.integers(0, 700).map(str), st.floats(-100, 100), max_size=3),
    "n": st.integers(0, 3),
    "tools": st.lists(TOOL, max_size=2),
    "tool_choice": st.sampled_from(["none", "auto", "required", NAMED]),
    "messages": st.lists(MESSAGE, min_size=1, max_size=3),
    "max_tokens": st.integers(1, 4),
    "user": JSON,
}
FEW = {"messages": [USER], "max_tokens": 4}
BODIES = some_of(FIELDS).map(lambda fields: {**FEW, **fields})


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
