"""SDKs of the cloud services, as they are published, on a model in the same process."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import azure.ai.inference.models as azure_models
import httpx
import openai
import pytest
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.aio import ChatCompletionsClient as AsyncChatCompletionsClient
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError
from azure.core.rest import HttpRequest
from openai.types.chat import ChatCompletionUserMessageParam
from pydantic import BaseModel
from typing_extensions import override

import phi_edge
from phi_edge.api.service import ChatService
from phi_edge.transports.azure import AsyncLocalTransport, LocalTransport
from phi_edge.transports.httpx import AsyncLocalTransport as AsyncHttpxTransport
from phi_edge.transports.httpx import LocalTransport as HttpxTransport

QUESTION = "How many languages are in the world?"
USER: ChatCompletionUserMessageParam = {"role": "user", "content": QUESTION}
MESSAGES = [
    azure_models.SystemMessage("Be brief."),
    azure_models.UserMessage(content=QUESTION),
]
KEY = AzureKeyCredential("none")


@pytest.fixture
def azure_client(service: ChatService) -> ChatCompletionsClient:
    return ChatCompletionsClient("https://local/models", KEY, transport=LocalTransport(service))


@pytest.fixture
def openai_client(service: ChatService) -> openai.OpenAI:
    # openai 3 takes clients of httpx, and its types those of httpx2 alone.
    http_client: Any = httpx.Client(transport=HttpxTransport(service))
    return openai.OpenAI(base_url="http://local/v1", api_key="none", http_client=http_client)


def ask(client: Any, **fields: Any) -> Any:
    return client.chat.completions.create(
        model="any", messages=[USER], **{"max_tokens": 6, **fields}
    )  # fmt: skip


def test_azure(azure_client: ChatCompletionsClient) -> None:
    with azure_client as client:
        assert client.get_model_info().model_provider_name == "Microsoft"
        extras = {"logprobs": True}
        answer = client.complete(messages=MESSAGES, max_tokens=6, model_extras=extras)
        assert answer.usage.completion_tokens == 6
        assert answer.choices[0].finish_reason == azure_models.CompletionsFinishReason("length")
        assert len(answer.choices[0]["logprobs"]["content"]) == 6
        updates = list(client.complete(messages=MESSAGES, max_tokens=6, stream=True))
        pieces = [update.choices[0].delta.content or "" for update in updates if update.choices]
        assert "".join(pieces) == answer.choices[0].message.content
        assert updates[-1].usage == answer.usage


def test_azure_errors(azure_client: ChatCompletionsClient) -> None:
    with pytest.raises(HttpResponseError) as caught:
        azure_client.complete(messages=MESSAGES, max_tokens=-4)
    assert caught.value.status_code == 400
    assert caught.value.response is not None
    assert "max_tokens" in caught.value.response.json()["error"]["message"]  # type: ignore[attr-defined]


def test_azure_asynchronous(service: ChatService, azure_client: ChatCompletionsClient) -> None:
    async def run() -> None:
        transport = AsyncLocalTransport(service)
        async with AsyncChatCompletionsClient("https://local", KEY, transport=transport) as client:
            answer = await client.complete(messages=MESSAGES, max_tokens=6)
            same = azure_client.complete(messages=MESSAGES, max_tokens=6)
            assert answer.choices == same.choices
            stream = await client.complete(messages=MESSAGES, max_tokens=6, stream=True)
            pieces = [
                update.choices[0].delta.content or "" async for update in stream if update.choices
            ]
            assert "".join(pieces) == answer.choices[0].message.content
            with pytest.raises(HttpResponseError, match="max_tokens"):
                await client.complete(messages=MESSAGES, max_tokens=-4)

    asyncio.run(run())


def test_openai(openai_client: openai.OpenAI) -> None:
    answer = ask(openai_client, logprobs=True, top_logprobs=2, seed=1, n=2)
    assert answer.usage.completion_tokens == 12
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    stream = ask(openai_client, stream=True, stream_options={"include_usage": True})
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (
        answer.choices[0].message.content
    )
    assert not last.choices
    assert last.usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in chunks)
    (described,) = openai_client.models.list().data
    assert openai_client.models.retrieve(described.id) == described
    assert answer.model == described.id


class Sea(BaseModel):
    """What the helper for structured output asks for."""

    is_blue: bool


def test_openai_helpers(openai_client: openai.OpenAI) -> None:
    """Structured output, and the stream that accumulates."""
    completions = openai_client.chat.completions
    parsed = completions.parse(
        model="any", messages=[USER], response_format=Sea, max_tokens=400
    )  # fmt: skip
    assert isinstance(parsed.choices[0].message.parsed, Sea)
    with completions.stream(
        model="any", messages=[USER], response_format=Sea, max_tokens=400
    ) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content
    assert final.choices[0].message.parsed == parsed.choices[0].message.parsed


def test_openai_errors(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(openai_client, max_tokens=-4)
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.NotFoundError, match="no /v1/embeddings"):
        openai_client.embeddings.create(model="any", input="text")


def test_openai_asynchronous(service: ChatService, openai_client: openai.OpenAI) -> None:
    async def run() -> None:
        http_client: Any = httpx.AsyncClient(transport=AsyncHttpxTransport(service))
        async with openai.AsyncOpenAI(
            base_url="http://local/v1", api_key="none", http_client=http_client
        ) as client:
            whole = await ask(client, n=1)
            assert whole.choices == ask(openai_client).choices
            pieces = [
                chunk.choices[0].delta.content or ""
                async for chunk in await ask(client, stream=True)
            ]
            assert "".join(pieces) == whole.choices[0].message.content

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_id", "comes_back"),
    [
        ("8d7c {'a'}", True),
        ("~" * 256, True),
        ("~" * 257, False),
        ("", False),
        ("\xe4", False),
        ("\x00", False),
        ("8d7c\r\nset-cookie: a=b", False),
        ("8d7c\n", False),
    ],
)
@pytest.mark.parametrize("path", ["/info", "/nothing"])
def test_a_client_gets_its_id_back(
    service: ChatService,
    path: str,
    request_id: str,
    comes_back: bool,  # noqa: FBT001
) -> None:
    url = f"http://local{path}"
    headers = {"x-ms-client-request-id": request_id, "X-MS-Return-Client-Request-Id": "true"}
    encoded = httpx.Headers(headers, encoding="latin-1")
    for found in (
        LocalTransport(service).send(HttpRequest("GET", url, headers=headers)).headers,
        httpx.Client(transport=HttpxTransport(service)).get(url, headers=encoded).headers,
    ):
        assert found.get("x-ms-client-request-id") == (request_id if comes_back else None)
        assert "set-cookie" not in found


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
def test_closing_a_stream_ends_the_work(model: phi_edge.Model, path: str) -> None:
    cancels: list[threading.Event] = []

    class Listener(ChatService):
        @override
        def stream(self, request: Any, cancel: Any = None) -> Any:
            cancels.append(cancel)
            return super().stream(request, cancel)

    body = {"messages": [USER], "stream": True}
    with (
        httpx.Client(transport=HttpxTransport(Listener(model))) as client,
        client.stream("POST", f"http://local{path}", json=body) as response,
    ):
        next(response.iter_lines())
        assert not cancels[0].is_set()
    assert cancels[0].is_set()
