"""Generated images, texts, schemas and requests, for what has to hold for any of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

Draw = Callable[[st.SearchStrategy[Any]], Any]

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


# Texts

PIECES = ["<|end|>", "<|user|>", "<|assistant|>", "<s>", "</s>", "<unk>", "<|image_1|>", "<0x0A>"]
PIECES += ["<|", "|>", "<", ">", "image_", "1", "end", " ", "\n", "▁", "\x00", "\ufeff", "é", "🙂"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join)
# The longest tokens that there are, so that a text has as few as possible.
LONG = ["administr", "▁languages", "▁triangles", "-" * 16, "=" * 16, " " * 16, "a"]
FEW_TOKENS = st.lists(st.sampled_from(LONG), max_size=40).map("".join)
PARTS = st.lists(TEXTS | st.none(), min_size=1, max_size=4)  # None is an image


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


SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.just({}) | keywords(st.just({})), keywords, max_leaves=6
)


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
