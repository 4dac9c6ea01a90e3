"""Published clients against the server: what the examples do not show.

C# is here by its wire format alone: `wire/azure_ai_inference_dotnet.jsonl` has the requests of
programs on `Azure.AI.Inference` 1.0.0-beta.5, one a line, as they were sent to a server on the same
machine. `case` says what a request is about. Hosts, request ids and lengths are left out, the key
is another, and `CHART_PNG` stands for `examples/chart.png` in base64.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
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

import phi_edge
from phi_edge.api.safety import BlockList
from phi_edge.api.service import ChatService

from .helpers.serving import serving

# Warnings of these packages about themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

TESTS = Path(__file__).parent
KEY = "0123456789abcdef0123456789abcdef"  # that of the recorded requests
QUESTION = "How many languages are in the world?"


def recorded(name: str) -> dict[str, dict[str, Any]]:
    """The requests of a client in `wire/`, by what they are about."""
    chart = base64.b64encode((TESTS.parent / "examples" / "chart.png").read_bytes()).decode()
    lines = (TESTS / "wire" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    requests = [json.loads(line.replace("CHART_PNG", chart)) for line in lines]
    return {request["case"]: request for request in requests}


CSHARP = recorded("azure_ai_inference_dotnet")
CSHARP_ANSWERS = {
    "question": "About 7,000.",
    "parameters": "About 7,000.",
    "extra parameters": "About 7,000.",
    "schema": '{"n": 2}',
    "tool": None,
    "image": "The green bar.",
    "image in low detail": "The green bar.",
}


@pytest.fixture(scope="module")
def url(service: ChatService) -> Iterator[str]:
    with serving(service, api_key=KEY) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def bundled() -> Iterator[httpx.Client]:
    """A server of the bundled model, which knows some answers."""
    with phi_edge.load_model() as model:
        service = ChatService(model, content_filters=[BlockList(["knife"])])
        with serving(service, api_key=KEY) as client:
            yield client


def send_as_csharp(client: httpx.Client, case: str) -> httpx.Response:
    request = CSHARP[case]
    headers = {**request["headers"], "x-ms-client-request-id": case}
    content = json.dumps(request["body"]) if request["body"] else None
    reply = client.request(request["method"], request["path"], headers=headers, content=content)
    assert reply.headers["x-ms-client-request-id"] == case
    return reply


def test_csharp_info(bundled: httpx.Client) -> None:
    info = send_as_csharp(bundled, "info").raise_for_status().json()
    assert info.keys() == {"model_name", "model_type", "model_provider_name"}


@pytest.mark.parametrize("case", CSHARP_ANSWERS)
def test_csharp(bundled: httpx.Client, case: str) -> None:
    answer = send_as_csharp(bundled, case).raise_for_status().json()
    assert isinstance(answer["id"], str)
    assert isinstance(answer["created"], int)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    # An image of one crop is 313 tokens.
    assert (usage["prompt_tokens"] > 313) == ("image" in case)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == ("tool_calls" if case == "tool" else "stop")
    message = choice["message"]
    assert message["role"] == "assistant"
    assert message["content"] == CSHARP_ANSWERS[case]
    for call in message["tool_calls"] or []:
        assert call["function"]["name"] == "count"
        assert json.loads(call["function"]["arguments"])["n"] in (1, 2)
    assert bool(message["tool_calls"]) == (case == "tool")
    tokens = (choice["logprobs"] or {"content": []})["content"]
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * len(tokens)
    assert bool(tokens) == (case == "extra parameters")


def test_csharp_stream(bundled: httpx.Client) -> None:
    reply = send_as_csharp(bundled, "stream").raise_for_status()
    lines = [line for line in reply.text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all({"id", "created", "model", "choices"} <= chunk.keys() for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta["content"] for delta in deltas) == CSHARP_ANSWERS["question"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"] == send_as_csharp(bundled, "question").json()["usage"]


@pytest.mark.parametrize(
    ("case", "code", "param"),
    [
        ("content safety", "content_filter", "prompt"),
        ("wrong temperature", "invalid_request", "temperature"),
    ],
)
def test_csharp_errors(bundled: httpx.Client, case: str, code: str, param: str) -> None:
    """`RequestFailedException.ErrorCode` is the error's code."""
    refused = send_as_csharp(bundled, case)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


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
