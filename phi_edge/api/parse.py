"""A request body -> a request, or an error that says what is wrong with it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import ValidationError

from phi_edge.errors import HttpResponseError, shorten

from .request import PARTS, STRING, ChatRequest

ExtraParameters = Literal["pass-through", "drop", "error"]

# What the Azure AI model inference API defines; others are its "extra parameters".
AZURE_FIELDS = frozenset(
    {"messages", "model", "temperature", "top_p", "max_tokens", "stop", "presence_penalty"}
    | {"frequency_penalty", "seed", "stream", "stream_options", "response_format", "tools"}
    | {"tool_choice"}
)
# Fields of OpenAI's API that change nothing here: clients send them to every model.
IGNORED_FIELDS = frozenset(
    {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"}
    | {"prompt_cache_key", "modalities"}
)
EXTRA_PARAMETERS_HEADER = "extra-parameters"
# Articles about the Azure SDK for JavaScript call it so.
_EXTRA_PARAMETERS_SHORT = "extra-params"
MAX_DEPTH = 100  # of lists and objects inside one another, in one field
# What an error shows of a request.
_MAX_LISTED = 5
_MAX_SHOWN_CHARACTERS = 160

_shorten = functools.partial(shorten, num_characters=_MAX_SHOWN_CHARACTERS)


def read_extra_parameters(headers: Mapping[str, str], default: ExtraParameters) -> ExtraParameters:
    """Read from a request's headers, with names in lower case, what becomes of extra parameters.

    Raises:
        HttpResponseError: 400; there is no such value.
    """
    found = headers.get(EXTRA_PARAMETERS_HEADER, headers.get(_EXTRA_PARAMETERS_SHORT, default))
    for value in get_args(ExtraParameters):
        if found.lower() == value:
            return value  # type: ignore[no-any-return]
    raise HttpResponseError(
        400,
        f"the header {EXTRA_PARAMETERS_HEADER} is one of "
        f"{', '.join(get_args(ExtraParameters))}, not {_shorten(found)!r}",
        param=EXTRA_PARAMETERS_HEADER,
    )


def parse_request(body: object, extra_parameters: ExtraParameters = "pass-through") -> ChatRequest:
    """Check a request body.

    Args:
        body: What the request's JSON says.
        extra_parameters: What becomes of fields that the Azure AI model inference API does not
            define: those known here are used ("pass-through") or dropped ("drop"), or any of
            them is an error ("error").

    Raises:
        HttpResponseError: 400 for a field that is missing, of another type or out of range, 422
            for one that is not supported; the message names it.
    """
    if not isinstance(body, Mapping):
        raise HttpResponseError(400, "the request body has to be a JSON object")
    fields = {name: value for name, value in body.items() if value is not None}
    if extra_parameters == "drop":
        fields = {name: fields[name] for name in fields.keys() & AZURE_FIELDS}
    for name, value in fields.items():
        if problem := _find_problem(value):
            place = _shorten(name)
            raise HttpResponseError(400, f"{place}: {problem}", code="invalid_request", param=place)
    known = ChatRequest.model_fields.keys() | IGNORED_FIELDS
    extra = sorted(set(fields) - AZURE_FIELDS)
    unknown = [name for name in extra if extra_parameters == "error" or name not in known]
    if unknown:
        raise _not_supported(unknown, fields)
    fields = {name: fields[name] for name in fields.keys() - IGNORED_FIELDS}
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None


def _find_problem(field: object) -> str | None:
    """Find what no field may hold: far too deep nesting, NaN, half a character."""
    level = [field]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[object] = []
        for value in level:
            if isinstance(value, Mapping):
                deeper += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple):
                deeper += value
            elif isinstance(value, float) and not math.isfinite(value):
                return "NaN and Infinity are no JSON numbers"
            elif isinstance(value, str) and not value.isascii() and _is_broken(value):
                return "the text has half of a surrogate pair"
        if not deeper:
            return None
        level = deeper
    return f"lists and objects are nested more than {MAX_DEPTH} deep"


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _not_supported(names: list[str], fields: Mapping[str, Any]) -> HttpResponseError:
    return HttpResponseError(
        422,
        f"this model does not take the parameter {_list(names)}; with the header "
        "`extra-parameters: drop` such parameters are left out",
        code="parameter_not_supported",
        param=_shorten(names[0]),
        detail=[{"loc": ["body", name], "input": fields[name]} for name in names],
    )


def _invalid(error: ValidationError) -> HttpResponseError:
    order = list(ChatRequest.__annotations__)  # the API's own fields first

    def place(location: tuple[int | str, ...]) -> int:
        name = str(location[0]) if location else ""
        return order.index(name) if name in order else len(order)

    found = sorted(error.errors(include_url=False), key=lambda problem: place(problem["loc"]))
    problems = {
        _shorten(_name_field(problem["loc"])): problem["msg"].removeprefix("Value error, ")
        for problem in found
    }
    texts = [f"{name}: {text}" if name else text for name, text in problems.items()]
    return HttpResponseError(
        400,
        _list(texts, "; "),
        code="invalid_request",
        param=next(iter(problems)) or None,
    )


def _list(texts: Sequence[str], separator: str = ", ") -> str:
    """List the first few of some texts; a client may send any number, of any length."""
    more = [f"and {len(texts) - _MAX_LISTED} more"] if len(texts) > _MAX_LISTED else []
    return separator.join([*map(_shorten, texts[:_MAX_LISTED]), *more])


def _name_field(location: tuple[int | str, ...]) -> str:
    """Write a field's place as one would, `messages[0].content[1].image_url.url`."""
    name, last = "", None
    for step in location:
        # A part's type stands before its fields.
        if step in (STRING, PARTS, "str", "list[str]") or (
            isinstance(last, int) and step in ("text", "image_url")
        ):
            last = None
            continue
        name += f"[{step}]" if isinstance(step, int) else f".{step}"
        last = step
    return name.removeprefix(".")
