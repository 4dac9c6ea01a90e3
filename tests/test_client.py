"""The native client."""

from __future__ import annotations

import base64
import inspect
import io
import json
import logging
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import azure.ai.inference as sdk
import azure.ai.inference.models
import azure.core
import numpy as np
import pytest
from azure.core.credentials import AzureKeyCredential
from PIL import Image

import phi_edge
from phi_edge import ChatCompletionsClient, HttpResponseError
from phi_edge.api.safety import BlockList
from phi_edge.api.service import ChatService, ServiceOptions
from phi_edge.client_options import CompleteArguments, TransportOptions
from phi_edge.image.files import open_image
from phi_edge.loading import BUNDLED_MODEL, LoadOptions, find_package
from phi_edge.models import (
    AssistantMessage,
    ChatCompletions,
    ChatCompletionsNamedToolChoice,
    ChatCompletionsNamedToolChoiceFunction,
    ChatCompletionsResponseFormat,
    ChatCompletionsToolDefinition,
    FunctionDefinition,
    ImageContentItem,
    ImageUrl,
    JsonSchemaFormat,
    SystemMessage,
    TextContentItem,
    UserMessage,
)

from .conftest import GoldenSet
from .helpers.requests import data_url

MESSAGES = [
    SystemMessage(content="You are a helpful assistant."),
    UserMessage(content="How many languages are in the world?"),
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"sea": {"enum": ["blue", "grey"]}},
    "required": ["sea"],
    "additionalProperties": False,
}


@pytest.fixture
def client(service: ChatService) -> ChatCompletionsClient:
    return ChatCompletionsClient(service, max_tokens=6)


def test_complete(client: ChatCompletionsClient) -> None:
    response = client.complete(messages=MESSAGES)
    assert response.choices[0].message.role == "assistant"
    assert response.choices[0].message.content
    assert response.choices[0].finish_reason == "length"
    usage = response.usage
    assert usage.completion_tokens == 6
    assert usage.total_tokens == usage.prompt_tokens + 6
    assert response.model == client.get_model_info().model_name
    assert response["usage"] == usage.as_dict()
    assert client.get_model_info().model_type == "chat-completions"
    assert client.get_model_info().model_provider_name == "Microsoft"


def test_stream_says_the_same(client: ChatCompletionsClient) -> None:
    whole = client.complete(messages=MESSAGES)
    with client.complete(messages=MESSAGES, stream=True) as stream:
        updates = list(stream)
    pieces = [update.choices[0].delta.content or "" for update in updates]
    assert "".join(pieces) == whole.choices[0].message.content
    assert [update.usage for update in updates[:-1]] == [None] * (len(updates) - 1)
    assert updates[-1].usage == whole.usage
    assert updates[-1].choices[0].finish_reason == "length"


def test_closing_a_stream_ends_it(client: ChatCompletionsClient) -> None:
    with client.complete(messages=MESSAGES, stream=True, max_tokens=200) as stream:
        next(stream)
    assert list(stream) == []


def test_every_argument(client: ChatCompletionsClient) -> None:
    response = client.complete(
        messages=[*MESSAGES, AssistantMessage(content="7,000."), UserMessage("Are you sure?")],
        presence_penalty=0.1,
        frequency_penalty=0.8,
        max_tokens=8,
        stop=["<|endoftext|>"],
        temperature=0,
        top_p=1,
        seed=3,
        model="some-name",
        response_format={"type": ChatCompletionsResponseFormat.TEXT},
        model_extras={"logprobs": True, "top_logprobs": 2, "n": 2},
    )
    assert len(response.choices) == 2
    assert len(response.choices[0]["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_defaults_of_the_client(service: ChatService) -> None:
    client = ChatCompletionsClient(service, max_tokens=3, model_extras={"logprobs": True})
    answer = client.complete(messages=MESSAGES)
    assert answer.usage.completion_tokens == 3
    assert len(answer.choices[0]["logprobs"]["content"]) == 3
    other = client.complete(messages=MESSAGES, max_tokens=2, model_extras={"n": 2})
    assert other.usage.completion_tokens == 4
    assert other.choices[0]["logprobs"] is None, "as the SDK does, in place of the client's"
    again = client.complete(messages=MESSAGES, max_tokens=2, model_extras={})
    assert len(again.choices[0]["logprobs"]["content"]) == 2


def test_a_body_instead_of_keywords(client: ChatCompletionsClient) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert client.complete(body).usage.completion_tokens == 2
    assert len(list(client.complete(body, stream=True))) >= 2
    sent = json.dumps(body).encode()
    assert client.complete(sent, content_type="application/json").usage.completion_tokens == 2
    assert client.complete(io.BytesIO(sent)).usage.completion_tokens == 2
    assert client.complete({"messages": MESSAGES, "max_tokens": 2}).usage.completion_tokens == 2
    with pytest.raises(TypeError, match="not both"):
        client.complete(body, max_tokens=3)
    for wrong in (b"{", b"[]"):
        with pytest.raises(HttpResponseError, match="JSON") as caught:
            client.complete(wrong)
        assert caught.value.status_code == 400
    with pytest.raises(TypeError, match="missing required argument: messages"):
        client.complete(max_tokens=3)
    wrong_kinds: list[Any] = [MESSAGES, json.dumps(body), io.StringIO("{}")]
    for wrong_kind in wrong_kinds:
        with pytest.raises(TypeError, match="is a keyword"):
            client.complete(wrong_kind)
    deep = b"[" * 900 + b"]" * 900
    with pytest.raises(HttpResponseError, match="nested") as caught:
        client.complete(b'{"messages": [], "metadata": ' + deep + b"}")
    assert caught.value.status_code == 400


def test_formats_and_tools(client: ChatCompletionsClient) -> None:
    schema = JsonSchemaFormat(name="sea", schema=SCHEMA, strict=True)
    answer = client.complete(messages=MESSAGES, response_format=schema, max_tokens=200)
    assert answer.choices[0].message.content in ('{"sea": "blue"}', '{"sea": "grey"}')
    json_answer = client.complete(messages=MESSAGES, response_format="json_object", max_tokens=2)
    assert json_answer.choices[0].message.content.startswith("{")
    tool = ChatCompletionsToolDefinition(
        function=FunctionDefinition(name="look", description="Looks.", parameters=SCHEMA)
    )
    chosen = ChatCompletionsNamedToolChoice(
        function=ChatCompletionsNamedToolChoiceFunction(name="look")
    )
    called = client.complete(
        messages=MESSAGES, tools=[tool], tool_choice=chosen, max_tokens=200
    ).choices[0]
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls or []
    assert call.function.name == "look"
    assert call.function.arguments.startswith('{"sea": "')


def test_images(client: ChatCompletionsClient, compact: GoldenSet, tmp_path: Path) -> None:
    picture = compact.image("wide_90x60")
    picture.save(tmp_path / "picture.png")
    loaded = ImageUrl.load(image_file=tmp_path / "picture.png", image_format="png", detail="low")
    question = TextContentItem(text="What is shown?")

    def ask(item: ImageContentItem) -> ChatCompletions:
        return client.complete(messages=[UserMessage(content=[question, item])])

    by_url = ask(ImageContentItem(image=ImageUrl(url=data_url(picture), detail="low")))
    by_path = ask(ImageContentItem(image_url=loaded))
    assert by_url.usage.prompt_tokens > 144
    assert by_url.choices == by_path.choices


def test_content_safety(service: ChatService) -> None:
    """The example of the reference article, with its way to read the error."""
    client = ChatCompletionsClient(
        ChatService(service.model, content_filters=[BlockList(["knife"])])
    )
    with pytest.raises(HttpResponseError) as caught:
        client.complete(messages=[UserMessage(content="Practice your knife skills.")])
    assert caught.value.status_code == 400
    error = caught.value.response.json()["error"]
    assert error["code"] == "content_filter"
    assert "filter" in error["message"]


def test_errors_name_the_field(client: ChatCompletionsClient) -> None:
    with pytest.raises(HttpResponseError, match="max_tokens") as caught:
        client.complete(messages=MESSAGES, max_tokens=-4)
    assert caught.value.status_code == 400
    with pytest.raises(TypeError, match="model_extras"):
        client.complete(messages=MESSAGES, logprobs=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="complete has no argument max_token"):
        client.complete(messages=MESSAGES, max_token=None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="the client has no argument max_token"):
        ChatCompletionsClient(client.service, max_token=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="the client has no argument messages"):
        ChatCompletionsClient(client.service, messages=MESSAGES)  # type: ignore[call-arg]


URL = "https://my-phi.eastus2.inference.ai.azure.com"


@pytest.mark.parametrize(
    ("endpoint", "model"),
    [
        (URL, None),
        (URL.upper(), "some-deployment"),
        ("http://localhost:8000/models", "Phi-3.5-vision-Instruct"),
        (None, None),
        ("phi-edge-tiny", None),
        (None, "PHI-EDGE-TINY"),
        (str(BUNDLED_MODEL), None),
        (BUNDLED_MODEL, "some-deployment"),
    ],
)
def test_an_endpoint(
    endpoint: str | Path | None,
    model: str | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it is, nothing is contacted, and the log says once what answers."""
    monkeypatch.delenv("PHI_EDGE_MODEL", raising=False)
    monkeypatch.setattr(socket.socket, "connect", Mock(side_effect=AssertionError("no network")))
    caplog.set_level(logging.INFO, "phi_edge.client")
    with phi_edge.load_client(endpoint=endpoint, credential=object(), model=model) as client:
        assert client.get_model_info().model_name == "phi-edge-tiny"
        answers = [client.complete(messages=MESSAGES) for _ in range(2)]
        assert answers[0].choices[0].message.content == "About 7,000."
    said, *warned = [record for record in caplog.records if record.name == "phi_edge.client"]
    is_url = str(endpoint).lower().startswith("http")
    assert said.levelno == logging.INFO
    assert said.getMessage().startswith(f"phi-edge-tiny in {BUNDLED_MODEL} answers")
    assert ("never contacted" in said.getMessage()) == is_url
    assert [record.levelno for record in warned] == ([logging.WARNING] if is_url else [])


def test_the_default_package(
    compact_fp32: Path, model: phi_edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`PHI_EDGE_MODEL` says what answers for a URL, without an endpoint, and by its own name."""
    monkeypatch.setenv("PHI_EDGE_MODEL", str(compact_fp32))
    name = model.manifest.name
    for endpoint in (URL, None, name.upper()):
        with ChatCompletionsClient(endpoint) as client:
            assert client.service.model.manifest.name == name
    with phi_edge.load_model() as default, phi_edge.load_model("phi-edge-tiny") as tiny:
        assert (default.manifest.name, tiny.manifest.name) == (name, "phi-edge-tiny")
    monkeypatch.setenv("PHI_EDGE_MODEL", str(compact_fp32 / "nothing"))
    assert find_package("phi-edge-tiny") == BUNDLED_MODEL
    with pytest.raises(phi_edge.PackageNotFoundError, match="nothing"):
        ChatCompletionsClient(URL)
    with pytest.raises(phi_edge.PackageNotFoundError, match="some-model"):
        ChatCompletionsClient("some-model")


def test_the_sdks_own_objects(client: ChatCompletionsClient) -> None:
    """Half of a program may have its imports changed already."""
    texts = ["You are a helpful assistant.", "How many languages are in the world?"]
    messages: Any = [sdk.models.SystemMessage(texts[0]), sdk.models.UserMessage(texts[1])]
    answer = client.complete(messages=messages)
    assert answer.choices == client.complete(messages=MESSAGES).choices
    assert client.complete({"messages": messages, "max_tokens": 6}).choices == answer.choices
    function = sdk.models.FunctionDefinition(name="look", parameters=SCHEMA)
    schema: Any = sdk.models.JsonSchemaFormat(name="sea", schema=SCHEMA)
    fitting = client.complete(messages=messages, response_format=schema, max_tokens=200)
    assert json.loads(fitting.choices[0].message.content)["sea"] in ("blue", "grey")
    tools: Any = [sdk.models.ChatCompletionsToolDefinition(function=function)]
    required: Any = sdk.models.ChatCompletionsToolChoicePreset.REQUIRED
    called = client.complete(messages=messages, tools=tools, tool_choice=required, max_tokens=200)
    assert called.choices[0].finish_reason == "tool_calls"


def test_extra_parameters_are_what_the_header_says(service: ChatService) -> None:
    """As the service reads it; without the header they are taken."""
    client = ChatCompletionsClient(service, max_tokens=2)
    extras = {"n": 2, "safe_mode": True}
    with pytest.raises(HttpResponseError, match="extra-parameters: drop") as caught:
        client.complete(messages=MESSAGES, model_extras=extras)
    assert caught.value.status_code == 422
    dropping = {"Extra-Parameters": "drop"}
    for asked, headers in ((client, dropping), (_with_headers(service, dropping), {})):
        answer = asked.complete(messages=MESSAGES, model_extras=extras, headers=headers)
        assert len(answer.choices) == 1
    with pytest.raises(HttpResponseError, match="n"):
        client.complete(messages=MESSAGES, model_extras={"n": 2}, headers={"extra-params": "error"})
    with pytest.raises(HttpResponseError, match="pass-through, drop, error"):
        client.complete(messages=MESSAGES, headers={"extra-parameters": "maybe"})


def _with_headers(service: ChatService, headers: dict[str, str]) -> ChatCompletionsClient:
    return ChatCompletionsClient(service, headers=headers, max_tokens=2)


def test_positions_are_the_sdks(service: ChatService) -> None:
    answer = ChatCompletionsClient(service, AzureKeyCredential("none"), max_tokens=2, model="phi")
    assert answer.complete(messages=MESSAGES).usage.completion_tokens == 2


# Found in azure-core, and no keywords of a client or a method: what its parts tell each other.
INTERNAL = {
    "_return_pipeline_response",
    "attributes",
    "block_size",
    "boundary",
    "continuation_token",
    "decompress",
    "enabled",
    "error",
    "error_format",
    "host",
    "internal_response",
    "loop",
    "message",
    "model",
    "page_iterator_class",
    "reason",
    "request",
    "status_code",
    "stream",
    "stream_download_generator",
    "trio_limiter",
}


def test_every_keyword_of_the_sdk_is_taken(service: ChatService) -> None:
    """Those of its signatures, and those that azure-core reads on the way."""
    client_class: Any = sdk.ChatCompletionsClient
    signatures = [client_class, client_class.complete, sdk.load_client]
    named = {name for each in signatures for name in inspect.signature(each).parameters}
    named -= {"self", "kwargs", "endpoint", "credential", "body", "stream"}
    assert named <= CompleteArguments.__optional_keys__
    read = set()
    for path in Path(azure.core.__path__[0]).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        read |= set(re.findall(r'(?:kwargs|options)\.(?:pop|get|setdefault)\("(\w+)"', text))
    assert len(read) > 50
    assert read - INTERNAL <= TransportOptions.__optional_keys__
    options: Any = dict.fromkeys(TransportOptions.__optional_keys__, None)
    options |= {"headers": {"extra-parameters": "pass-through"}, "timeout": 0.001, "seed": 1}
    with ChatCompletionsClient(service, credential="key", temperature=0, **options) as client:
        del options["seed"]
        assert client.get_model_info(**options).model_type == "chat-completions"
        answer = client.complete(messages=MESSAGES, seed=2, max_tokens=2, **options)
        assert answer.usage.completion_tokens == 2
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert client.complete(body, **options).usage.completion_tokens == 2


def test_what_a_client_loads_it_closes(compact_fp32: Path, model: phi_edge.Model) -> None:
    with phi_edge.load_client(compact_fp32) as client:
        assert client.complete(messages=MESSAGES, max_tokens=1).usage.completion_tokens == 1
        loaded = client.service.model
    with pytest.raises(phi_edge.EngineError, match="closed"):
        loaded.start(loaded.encode_prompt("<|user|>\nHi<|end|>\n<|assistant|>\n"))
    with ChatCompletionsClient(model) as client:
        pass
    assert ChatCompletionsClient(model).complete(messages=MESSAGES, max_tokens=1)


def test_a_loaded_model_takes_no_more_options(service: ChatService, model: phi_edge.Model) -> None:
    with pytest.raises(TypeError, match="loaded already, without num_threads"):
        ChatCompletionsClient(model, num_threads=2)
    with pytest.raises(TypeError, match="loaded already, without image_policy, provider"):
        ChatCompletionsClient(service, provider="cpu", image_policy="all")
    assert ChatCompletionsClient(model, image_policy="all").service.model is model


def test_a_client_takes_every_option_of_a_model_and_a_service(
    compact_fp32: Path, tmp_path: Path
) -> None:
    with pytest.raises(phi_edge.MemoryLimitError):
        ChatCompletionsClient(compact_fp32, max_ram_mb=1)
    with pytest.raises(ValueError, match="engine must be"):
        phi_edge.load_client(compact_fp32, engine="none")
    with pytest.raises(phi_edge.CalibrationError):
        ChatCompletionsClient(compact_fp32, max_ttft_ms=1)
    with ChatCompletionsClient(
        compact_fp32, disk_cache=tmp_path / "kept", system_role="system", max_tokens=2
    ) as client:
        assert client.complete(messages=MESSAGES).usage.completion_tokens == 2
    assert (tmp_path / "kept").is_dir()


@pytest.mark.parametrize(
    ("options", "takes"),
    [(LoadOptions, phi_edge.load_model), (ServiceOptions, ChatService)],
)
def test_options_are_those_that_are_taken(options: Any, takes: Callable[..., Any]) -> None:
    names = set(inspect.signature(takes).parameters) - {"path", "model"}
    assert options.__optional_keys__ == names


def test_a_closed_stream_leaves_its_conversation(
    compact_fp32: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it has read and said is there for the next question."""
    caplog.set_level(logging.INFO, "phi_edge")
    with ChatCompletionsClient(compact_fp32) as client:
        stream = client.complete(messages=MESSAGES, stream=True, max_tokens=4000)
        next(stream)
        stream.close()
        assert "are cached" not in caplog.text
        usage = client.complete(messages=MESSAGES, max_tokens=1).usage
    assert f"{usage.prompt_tokens} of {usage.prompt_tokens} prompt tokens" in caplog.text


def test_another_thread_closes_a_stream(compact_fp32: Path) -> None:
    """One that is being read ends there."""
    with ChatCompletionsClient(compact_fp32) as client:
        stream = client.complete(messages=MESSAGES, stream=True, max_tokens=100_000)
        next(stream)
        threading.Timer(0.1, stream.close).start()
        assert 0 < len(list(stream)) < 50_000
        assert list(stream) == []


@pytest.mark.parametrize("kind", ["path", "bytes", "image", "array"])
def test_images_of_every_kind(client: ChatCompletionsClient, tmp_path: Path, kind: str) -> None:
    picture = Image.new("RGB", (90, 60), "red")
    picture.save(tmp_path / "picture.png")
    source: Any = {
        "path": str(tmp_path / "picture.png"),
        "bytes": (tmp_path / "picture.png").read_bytes(),
        "image": picture,
        "array": np.asarray(picture),
    }[kind]
    url = ImageUrl.load(image_file=source, detail="low")
    assert url.url.startswith("data:image/png;base64,")
    item = ImageContentItem(image_url=url)
    asked = client.complete(messages=[UserMessage(content=[item])])
    expected = ImageUrl.load(image_file=tmp_path / "picture.png", image_format="png", detail="low")
    item = ImageContentItem(image_url=expected)
    assert asked.choices == client.complete(messages=[UserMessage(content=[item])]).choices


def test_the_format_of_an_image_is_looked_up(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4)).save(tmp_path / "no-name", "JPEG")
    assert ImageUrl.load(image_file=tmp_path / "no-name").url.startswith("data:image/jpeg;")
    printed = ImageUrl.load(image_file=Image.new("CMYK", (4, 4)))
    assert printed.url.startswith("data:image/png;"), "which has no CMYK"
    (tmp_path / "text").write_text("no image")
    with pytest.raises(phi_edge.ImageError, match="not an image"):
        ImageUrl.load(image_file=tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        ImageUrl.load(image_file=tmp_path / "nothing")
    for wrong in ("https://example.com/a.png", "no\0.png", "x" * 5000, tmp_path):
        with pytest.raises(phi_edge.ImageError):
            ImageUrl.load(image_file=wrong, image_format="png")
    said = ImageUrl.load(image_file=tmp_path / "text", image_format="png")
    assert said.url == "data:image/png;base64,bm8gaW1hZ2U=", "as it is said to be"


@pytest.mark.parametrize("brightest", [200, 60_000])
def test_images_of_many_bits(model: phi_edge.Model, brightest: int) -> None:
    """They look as they do without a file between."""
    values = np.linspace(0, brightest, 64, dtype=np.int32).reshape(8, 8)
    image = Image.fromarray(values)
    assert image.mode == "I"
    encoded = ImageUrl.load(image_file=image).url.partition(",")[2]
    read = open_image(io.BytesIO(base64.b64decode(encoded)))
    assert model.preprocess(read, 1).digest == model.preprocess(image, 1).digest
