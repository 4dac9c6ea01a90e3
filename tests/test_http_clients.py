"""Published clients against the server: what the examples do not show.

C# is here by its wire format alone: `Azure.AI.Inference` 1.0.0-beta writes these bodies and
headers, and reads these fields (from the package's published serialization code).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import litellm
import openai
import pytest
from azure.ai.inference.aio import ChatCompletionsClient
from azure.ai.inference.models import UserMessage
from azure.core.credentials import AzureKeyCredential
from langchain_azure_ai.chat_models.inference import AzureAIChatCompletionsModel
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from phi_edge.api.safety import BlockList
from phi_edge.api.service import ChatService

from .conftest import GoldenSet
from .helpers.requests import data_url
from .helpers.serving import serving

# Warnings of these packages about themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

KEY = "sesame"
QUESTION = "How many languages are in the world?"
CSHARP_MESSAGES = [
    {"content": "You are a helpful assistant.", "role": "system"},
    {"content": QUESTION, "role": "user"},
]
CSHARP_REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"messages": CSHARP_MESSAGES, "max_tokens": 6},
    "parameters": {
        "messages": CSHARP_MESSAGES,
        "frequency_penalty": 0.8,
        "presence_penalty": 0.1,
        "temperature": 0,
        "top_p": 1,
        "max_tokens": 6,
        "response_format": {"type": "text"},
        "stop": ["<|endoftext|>"],
    },
    "extra parameters": {"messages": CSHARP_MESSAGES, "max_tokens": 6, "logprobs": True},
}


@pytest.fixture(scope="module")
def server(service: ChatService) -> Iterator[httpx.Client]:
    filtered = ChatService(service.model, content_filters=[BlockList(["knife"])])
    with serving(filtered, api_key=KEY) as client:
        client.headers["api-key"] = KEY
        yield client


@pytest.fixture(scope="module")
def url(server: httpx.Client) -> str:
    return str(server.base_url).rstrip("/")


def post_as_csharp(server: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    headers = {"extra-parameters": "pass-through"} if "logprobs" in body else {}
    parameters = {"api-version": "2024-05-01-preview"}
    return server.post("/chat/completions", params=parameters, json=body, headers=headers)


@pytest.mark.parametrize("name", CSHARP_REQUESTS)
def test_csharp(server: httpx.Client, name: str) -> None:
    answer = post_as_csharp(server, CSHARP_REQUESTS[name]).raise_for_status().json()
    assert isinstance(answer["id"], str)
    assert isinstance(answer["created"], int)
    assert answer["usage"]["total_tokens"] == (
        answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    )
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]


def test_csharp_stream(server: httpx.Client) -> None:
    body = {**CSHARP_REQUESTS["plain"], "stream": True}
    lines = [line for line in post_as_csharp(server, body).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all({"id", "created", "model", "choices"} <= chunk.keys() for chunk in chunks)


def test_csharp_image(server: httpx.Client, compact: GoldenSet) -> None:
    image = {"image_url": {"url": data_url(compact.image("wide_90x60"))}, "type": "image_url"}
    content = [{"text": "What is shown?", "type": "text"}, image]
    body = {"messages": [{"content": content, "role": "user"}], "max_tokens": 6}
    assert post_as_csharp(server, body).json()["usage"]["prompt_tokens"] > 144


def test_csharp_content_safety(server: httpx.Client) -> None:
    """`RequestFailedException.ErrorCode` is the error's code."""
    body = {"messages": [{"content": "A knife.", "role": "user"}]}
    refused = post_as_csharp(server, body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "content_filter"


def test_csharp_info(server: httpx.Client) -> None:
    info = server.get("/info", params={"api-version": "2024-05-01-preview"}).json()
    assert info.keys() == {"model_name", "model_type", "model_provider_name"}


def test_azure_asynchronous(url: str) -> None:
    async def ask() -> None:
        async with ChatCompletionsClient(url, AzureKeyCredential(KEY)) as client:
            whole = await client.complete(messages=[UserMessage(QUESTION)], max_tokens=6)
            stream = await client.complete(
                messages=[UserMessage(QUESTION)], max_tokens=6, stream=True
            )
            pieces = [
                update.choices[0].delta.content or "" async for update in stream if update.choices
            ]
            assert "".join(pieces) == whole.choices[0].message.content

    asyncio.run(ask())


def test_openai_asynchronous(url: str) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
            completions = client.chat.completions
            whole = await completions.create(
                model="any", messages=[{"role": "user", "content": QUESTION}], max_tokens=6
            )
            stream = await completions.create(
                model="any",
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=6,
                stream=True,
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(pieces) == whole.choices[0].message.content

    asyncio.run(ask())


class Sea(BaseModel):
    """The sea."""

    is_blue: bool


@pytest.mark.parametrize("package", ["langchain-openai", "langchain-azure-ai"])
def test_langchain(package: str, url: str) -> None:
    chat: Any = (
        ChatOpenAI(
            model="any", base_url=f"{url}/v1", api_key=SecretStr(KEY), max_completion_tokens=400
        )
        if package == "langchain-openai"
        else AzureAIChatCompletionsModel(endpoint=url, credential=KEY, max_tokens=400)
    )
    whole = chat.invoke(QUESTION)
    assert "".join(str(chunk.content) for chunk in chat.stream(QUESTION)) == whole.content
    assert whole.usage_metadata["total_tokens"] > 400
    parsed = chat.with_structured_output(Sea, method="json_schema").invoke("Is it blue?")
    assert isinstance(parsed, Sea)


def test_litellm_stream(url: str) -> None:
    stream = litellm.completion(
        model="openai/any",
        api_base=f"{url}/v1",
        api_key=KEY,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=6,
        stream=True,
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
