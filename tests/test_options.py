"""One object for every option of generation, and every way to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from click.testing import CliRunner

import phi_edge
from phi_edge import GenerationOptions
from phi_edge.api.parse import parse_request
from phi_edge.api.request import ChatRequest
from phi_edge.api.service import ChatService
from phi_edge.cli import cli
from phi_edge.generation.options import OptionFields, SharedOptions

from .helpers.requests import body, complete, text

SHARED = list(SharedOptions.model_fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "^temperature: .* greater than or equal to 0, not -1.0$"),
        ({"temperature": float("nan")}, "^temperature: .* finite"),
        ({"temperature": float("inf")}, "^temperature: .* finite"),
        ({"top_p": 0.0}, "^top_p: .* greater than 0"),
        ({"top_p": 1.1}, "^top_p: .* less than or equal to 1"),
        ({"top_k": 0}, "^top_k: .* greater than or equal to 1"),
        ({"min_p": -0.1}, "^min_p: "),
        ({"min_p": 1.5}, "^min_p: "),
        ({"repetition_penalty": 1e-320}, "^repetition_penalty: .* greater than or equal to 0.01"),
        ({"repetition_penalty": 1e3}, "^repetition_penalty: .* less than or equal to 100"),
        ({"presence_penalty": float("nan")}, "^presence_penalty: "),
        ({"frequency_penalty": float("-inf")}, "^frequency_penalty: "),
        ({"max_tokens": 0}, "^max_tokens: .* greater than or equal to 1, not 0$"),
        ({"draft_tokens": -1}, "^draft_tokens: "),
        ({"num_logprobs": -1}, "^num_logprobs: "),
        ({"n": 0}, "^n: "),
        ({"seed": 1.5}, "^seed: "),
        ({"seed": "x" * 1000}, r"^seed: .{1,200}\.\.\.$"),
        ({"stop": ["a", ""]}, "^stop: a stop string cannot be empty$"),
        ({"stop": 5}, "^stop: "),
        ({"logit_bias": {"a": 1}}, "^logit_bias: "),
        ({"logit_bias": {5: float("nan")}}, "^logit_bias: "),
        ({"logit_bias": {5: 1e300}}, "^logit_bias: .* less than or equal to 10000"),
        ({"json_schema": "{}"}, "^json_schema: "),
        ({"constraint": object()}, "^constraint: "),
    ],
)
def test_ranges(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**fields)
    with pytest.raises(ValueError, match=message):
        GenerationOptions().replace(**fields)


def test_unknown_options() -> None:
    with pytest.raises(TypeError, match="no option 'temprature'"):
        GenerationOptions(temprature=1.0)  # type: ignore[call-arg]


def test_options_do_not_change() -> None:
    bias = {5: 1.0}
    options = GenerationOptions(logit_bias=bias, stop=["a"], seed=3)
    with pytest.raises(ValueError, match="frozen"):
        options.seed = 4
    bias[5] = 9
    assert options.logit_bias == {5: 1.0}
    other = options.replace(seed=4, stop="b")
    assert (options.seed, options.stop_strings) == (3, ("a",))
    assert (other.seed, other.stop_strings, other.logit_bias) == (4, ("b",), {5: 1.0})
    assert options == GenerationOptions(logit_bias={5: 1}, stop=["a"], seed=3) != other


def test_numbers_of_numpy_are_numbers() -> None:
    options = GenerationOptions(
        temperature=np.float32(0.5), seed=np.int64(3), logit_bias={np.int64(7): np.float32(1)}
    )
    assert options == GenerationOptions(temperature=0.5, seed=3, logit_bias={7: 1.0})


def test_keywords_are_the_fields() -> None:
    assert set(OptionFields.__annotations__) == set(GenerationOptions.model_fields)


def test_fields_replace_those_of_options(model: phi_edge.Model) -> None:
    options = GenerationOptions(max_tokens=5, temperature=1.3, seed=1)
    prompt = model.encode_prompt("What is the sea?")
    changed = list(model.generate(prompt, options, max_tokens=3))
    assert changed[:2] == list(model.generate(prompt, options))[:2]
    assert len(changed) == 3


@pytest.mark.parametrize("name", SHARED)
def test_shared_options_are_in_the_api_and_on_the_command_line(name: str) -> None:
    default = getattr(GenerationOptions(), name)
    value = {"top_k": 7, "max_tokens": 9, "seed": 3}.get(name, 1 if default == 0 else 0.5)
    value = 5 if name == "draft_tokens" else value
    request = parse_request(body(**{name: value}))
    assert getattr(request.options(None), name) == value
    assert getattr(options_of_chat(f"--{name.replace('_', '-')}", str(value)), name) == value


def options_of_chat(*arguments: str) -> GenerationOptions:
    """The options that `phi-edge chat` generates with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phi_edge.Model, "generate", generate := Mock(return_value=[]))
        shown = CliRunner().invoke(cli, ["chat", *arguments, "Hi"], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    options = generate.call_args.args[1]
    assert isinstance(options, GenerationOptions)
    return options


def test_chat_ends_answers(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    schema = "--json-schema", str(tmp_path / "schema.json")
    assert options_of_chat("--stop", "a", "--stop", "b", *schema) == GenerationOptions(
        max_tokens=1024, stop=["a", "b"], json_schema={"type": "object"}
    )
    (tmp_path / "schema.json").write_text("[]")
    for path in (tmp_path / "schema.json", tmp_path / "none"):
        wrong = CliRunner().invoke(cli, ["chat", "--json-schema", str(path), "Hi"])
        assert wrong.exit_code == 2
        assert str(path) in wrong.output


def test_every_field_of_a_request_comes_to_the_options() -> None:
    request = parse_request(
        body(
            max_completion_tokens=4,
            stop=["a", "b"],
            logit_bias={"7": 2},
            logprobs=True,
            top_logprobs=3,
            n=2,
            top_k=5,
        )
    )
    assert request.options({"type": "object"}) == GenerationOptions(
        max_tokens=4,
        stop=["a", "b"],
        logit_bias={7: 2.0},
        num_logprobs=3,
        n=2,
        top_k=5,
        json_schema={"type": "object"},
    )
    nothing = parse_request(body(top_p=0, temperature=2)).options(None)
    assert (nothing.temperature, nothing.top_p) == (0, 1), "the most likely token is left"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 0),
        ("top_k", 1.5),
        ("min_p", 2),
        ("min_p", True),
        ("repetition_penalty", 1e-320),
        ("draft_tokens", 17),
    ],
)
def test_the_api_names_extras_that_are_wrong(name: str, value: object) -> None:
    with pytest.raises(phi_edge.HttpResponseError, match=name) as raised:
        parse_request(body(**{name: value}))
    assert (raised.value.status_code, raised.value.param) == (400, name)


def test_extras_change_answers(service: ChatService) -> None:
    usual = complete(service, max_tokens=12)
    assert text(complete(service, max_tokens=12, repetition_penalty=0.01)) != text(usual)
    varied = {"max_tokens": 12, "temperature": 2, "seed": 1}
    assert text(complete(service, **varied)) != text(usual)
    for only_one in ({"top_k": 1}, {"min_p": 1.0}):
        assert text(complete(service, **varied, **only_one)) == text(usual)


def test_of_several_wrong_fields_the_api_s_own_are_named_first() -> None:
    with pytest.raises(phi_edge.HttpResponseError, match=r"messages.*temperature") as raised:
        parse_request({"temperature": 9, "max_tokens": 0, "top_k": 0})
    assert raised.value.param == "messages"


def test_a_request_has_all_that_is_shared() -> None:
    assert set(SHARED) < set(ChatRequest.model_fields)
