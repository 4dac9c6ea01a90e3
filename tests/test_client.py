"""The native client, and its twin for asynchronous code."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import pytest

import phi_edge
from phi_edge import ChatCompletionsClient, HttpResponseError, aio
from phi_edge.api.safety import BlockList
from phi_edge.api.service import ChatService
from phi_edge.generation import generate_choices
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
    other = client.complete(messages=MESSAGES, max_tokens=2, model_extras={"logprobs": False})
    assert other.usage.completion_tokens == 2
    assert other.choices[0]["logprobs"] is None


def test_a_body_instead_of_keywords(client: ChatCompletionsClient) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert client.complete(body).usage.completion_tokens == 2
    assert len(list(client.complete(body, stream=True))) >= 2
    with pytest.raises(TypeError, match="not both"):
        client.complete(body, max_tokens=3)


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
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    loaded = ImageUrl.load(image_file=tmp_path / "picture.png", image_format="png", detail="low")
    question = TextContentItem(text="What is shown?")

    def ask(item: ImageContentItem) -> ChatCompletions:
        return client.complete(messages=[UserMessage(content=[question, item])])

    by_url = ask(ImageContentItem(image=ImageUrl(url=url, detail="low")))
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
    with pytest.raises(TypeError, match="max_token"):
        ChatCompletionsClient(client.service, max_token=3)


def test_what_a_client_loads_it_closes(compact_fp32: Path, model: phi_edge.Model) -> None:
    with phi_edge.load_client(compact_fp32) as client:
        assert client.complete(messages=MESSAGES, max_tokens=1).usage.completion_tokens == 1
        loaded = client.service.model
    with pytest.raises(phi_edge.EngineError, match="closed"):
        loaded.start(loaded.encode_prompt("<|user|>\nHi<|end|>\n<|assistant|>\n"))
    with ChatCompletionsClient(model) as client:
        pass
    assert ChatCompletionsClient(model).complete(messages=MESSAGES, max_tokens=1)


def test_asynchronous_client(service: ChatService, client: ChatCompletionsClient) -> None:
    async def ask() -> None:
        async with aio.ChatCompletionsClient(service, max_tokens=6) as twin:
            whole = await twin.complete(messages=MESSAGES)
            assert isinstance(whole, ChatCompletions)
            assert whole.choices == client.complete(messages=MESSAGES).choices
            assert await twin.get_model_info() == client.get_model_info()
            stream = await twin.complete(messages=MESSAGES, stream=True)
            assert isinstance(stream, aio.AsyncStreamingChatCompletions)
            async with stream:
                pieces = [update.choices[0].delta.content async for update in stream]
            assert "".join(map(str, pieces)) == whole.choices[0].message.content
            with pytest.raises(HttpResponseError, match="max_tokens"):
                await twin.complete(messages=MESSAGES, max_tokens=-4)
        loaded = await aio.load_client(service)
        assert isinstance(await loaded.complete(messages=MESSAGES, max_tokens=1), ChatCompletions)

    asyncio.run(ask())


def test_cancelling_a_task_ends_the_work(
    service: ChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generation of an answer of thousands of tokens stops."""
    num_tokens = 0

    async def give_up() -> None:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def count(*args: Any, **arguments: Any) -> Any:
            nonlocal num_tokens
            for event in generate_choices(*args, **arguments):
                num_tokens += 1
                loop.call_soon_threadsafe(started.set)
                yield event

        monkeypatch.setattr("phi_edge.api.service.generate_choices", count)
        client = aio.ChatCompletionsClient(service)
        task = asyncio.create_task(client.complete(messages=MESSAGES, max_tokens=4000))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())  # waits for its threads
    assert 0 < num_tokens < 4000
