"""What a user's type checker makes of a script."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """\
import numpy as np
from typing_extensions import assert_type

import phi_edge
from phi_edge import Answer, Generation, GenerationOptions, aio
from phi_edge.models import (
    AsyncStreamingChatCompletions,
    ChatCompletions,
    StreamingChatCompletions,
    UserMessage,
)

MESSAGES = [UserMessage(content="Hi")]


def ask() -> None:
    model = phi_edge.load_model()
    options = GenerationOptions(temperature=0.8, top_k=40, stop=["\\n"], logit_bias={5: 1.0})
    picture = np.zeros((4, 4, 3), np.uint8)
    assert_type(model.ask("Hi", images=["a.png", picture], options=options), Answer)
    assert_type(model.stream("Hi", max_tokens=3, min_p=0.1), Generation)
    print([event.text for event in model.generate(model.encode_prompt("Hi"), options)])


def complete(client: phi_edge.ChatCompletionsClient, stream: bool) -> None:
    assert_type(client.complete(messages=MESSAGES, temperature=0.5), ChatCompletions)
    assert_type(client.complete(messages=MESSAGES, stream=False), ChatCompletions)
    assert_type(client.complete(messages=MESSAGES, stream=True), StreamingChatCompletions)
    answer = client.complete(messages=MESSAGES, stream=stream)
    assert_type(answer, ChatCompletions | StreamingChatCompletions)


def complete_as_in_the_cloud() -> None:
    client = phi_edge.ChatCompletionsClient(
        endpoint="https://local", credential=object(), api_version="2024-05-01-preview", model="phi"
    )
    answer = client.complete(messages=MESSAGES, model="phi", headers={"x": "y"}, read_timeout=5)
    assert_type(answer.choices[0].message.content, str)
    assert_type(answer.usage.prompt_tokens, int)
    client.complete(b"{}", logging_enable=True)


async def complete_later() -> None:
    async with aio.ChatCompletionsClient("folder", provider="cpu", max_tokens=5) as client:
        assert_type(await client.complete(messages=MESSAGES, seed=3), ChatCompletions)
        stream = await client.complete(messages=MESSAGES, stream=True)
        assert_type(stream, AsyncStreamingChatCompletions)
        async for update in stream:
            print(update.choices[0].delta.content)
"""
# Each is an error, and in the line that it stands in.
MISTAKES = """\
import phi_edge
from phi_edge import aio

model = phi_edge.load_model()
model.ask("Hi", temprature=1)
model.ask("Hi", temperature="warm")
phi_edge.GenerationOptions(temprature=1)
client = phi_edge.ChatCompletionsClient(model)
client.complete(messages=[], temprature=1)
phi_edge.ChatCompletionsClient(model, max_token=1)
aio.ChatCompletionsClient(model, max_token=1)


async def complete(client: aio.ChatCompletionsClient) -> None:
    await client.complete(messages=[], stream=True, temprature=1)
"""
WRONG_LINES = {5, 6, 7, 9, 10, 11, 15}


def check(checker: str, script: str, folder: Path) -> tuple[int, set[int], str]:
    """Exit status, the lines with errors, and what was said."""
    file = folder / "script.py"
    file.write_text(script)
    options = ["--strict", "--config-file="] if checker == "mypy" else []
    # The second script finds in the folder what the first has found of the package.
    done = subprocess.run(
        [sys.executable, "-m", checker, *options, str(file)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if "script.py:" in line and "error:" in line]
    numbers = {int(line.split("script.py:")[1].split(":")[0]) for line in lines}
    return done.returncode, numbers, done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scripts")


@pytest.fixture(params=["mypy", "pyright"])
def checker(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def test_a_script_has_exact_types(checker: str, folder: Path) -> None:
    code, _, said = check(checker, SCRIPT, folder)
    assert code == 0, said


def test_mistakes_are_found(checker: str, folder: Path) -> None:
    code, numbers, said = check(checker, MISTAKES, folder)
    assert (code, numbers) == (1, WRONG_LINES), said
