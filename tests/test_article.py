"""The reference article's Python chapter on a model of this machine, and its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer

from phi_edge.image.crops import count_tokens, padded_size
from phi_edge.text.prompt import chat_text, encode_prompt

from .conftest import REFERENCE_FILES
from .helpers.article import BLOCKS

ROOT = Path(__file__).parents[1]
ANSWER = "About 7,000."
# What the blocks that print something print. 50 tokens: one BOS, text by the tiny tokenizer.
PRINTED = {
    "what the model is": "phi-edge-tiny|chat-completions|phi_edge\n",
    "its answer and usage": f"{ANSWER}\nphi-edge-tiny\n50\n50\n",
    "the stream, printed": ANSWER,
    "more parameters": f"{ANSWER}\n",
    "extra parameters": " About\n",
    "content safety": "content_filter: a content filter of this machine found the prompt to be "
    "harmful: change the prompt and try again\n",
    "its answer": "ChatRole.ASSISTANT: The green bar.\nTrue\n",
}


@pytest.fixture(scope="module", params=["with", "without"])
def printed(request: pytest.FixtureRequest) -> dict[str, str]:
    """What each block prints, in a process that can import azure-core or cannot."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.article", request.param],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("block", BLOCKS)
def test_block(block: str, printed: dict[str, str]) -> None:
    expected = PRINTED.get(block, "")
    if sys.version_info < (3, 11):  # where an f-string shows a member's value, as the SDK's too
        expected = expected.replace("ChatRole.ASSISTANT", "assistant")
    assert printed[block] == expected


@pytest.fixture(scope="module")
def real_tokenizer() -> Tokenizer:
    if not REFERENCE_FILES.is_dir():
        pytest.skip("the real tokenizer is not at ../shared")
    return Tokenizer.from_file(str(REFERENCE_FILES / "tokenizer.json"))


def test_the_first_request_is_28_tokens(real_tokenizer: Tokenizer) -> None:
    """The article's service counted 19 of them: `docs/migrate.md` has the derivation."""
    texts = ["You are a helpful assistant.", "How many languages are in the world?"]
    prompt = encode_prompt(real_tokenizer, chat_text([("user", text) for text in texts]), [])
    tokens = [str(real_tokenizer.id_to_token(int(token_id))) for token_id in prompt.input_ids]
    assert prompt.num_tokens == 28
    assert tokens[0] == "<s>"
    # Four line ends, of two tokens each: a space and a byte.
    assert "".join(tokens).count("▁<0x0A>") == tokens.count("<0x0A>") == 4
    assert len(tokens) - 1 - 4 * 2 == 19
    special = [token for token in tokens if token.startswith("<|")]
    assert special == ["<|user|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>"]
    words = [real_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [len(special), *map(len, words)] == [5, 6, 8]


def test_the_chart_is_2353_tokens() -> None:
    """In 15 crops, which leave 27 of the article's 2,380 for the text."""
    chart = Image.new("RGB", (1900, 1069))
    assert count_tokens(padded_size(*chart.size, 16)) == 2353
