"""Prompts and text: tags, pieces, detokenization, stop strings."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

import phi_edge
from phi_edge import PromptError
from phi_edge.image.crops import ImageCrops
from phi_edge.text.detokenizer import Detokenizer
from phi_edge.text.prompt import chat_text, encode_prompt

CROPS = ImageCrops(np.zeros((2, 3, 336, 336), np.float32), (336, 336))


def test_chat_text() -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    assert chat_text(turns) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n"
        "<|assistant|>\nHello.<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n"
    )


def test_every_piece_has_its_own_bos(tokenizer: Tokenizer) -> None:
    ids = encode_prompt(tokenizer, "<|image_1|><|image_2|>", [CROPS, CROPS]).input_ids.tolist()
    assert ids == [1, *[-1] * 313, 1, *[-2] * 313, 1]


@pytest.mark.parametrize(
    ("text", "num_images"),
    [
        ("no tag", 1),
        ("<|image_1|> <|image_2|>", 1),
        ("<|image_1|>", 2),
        ("<|image_2|>", 1),
        ("<|image_0|><|image_1|>", 1),
    ],
)
def test_tags_must_name_the_images(tokenizer: Tokenizer, text: str, num_images: int) -> None:
    with pytest.raises(PromptError, match="it needs"):
        encode_prompt(tokenizer, text, [CROPS] * num_images)


def test_a_tag_without_images_is_text(tokenizer: Tokenizer) -> None:
    prompt = encode_prompt(tokenizer, "<|image_1|>", [])
    assert (prompt.input_ids >= 0).all()
    assert prompt.num_tokens > 2


def test_one_image_named_twice_is_refused(model: phi_edge.Model) -> None:
    prompt = encode_prompt(model.tokenizer, "<|image_1|><|image_1|>", [CROPS])
    with pytest.raises(PromptError, match="name each image exactly once"):
        model.start(prompt)


@pytest.mark.parametrize(
    "text",
    ["A 🙂 café", "  two  spaces\ttab\n\nnew line", "你好🙂 \u00ad", "\n x", "a<|end|>b", ""],
)
def test_detokenizer_gives_the_tokenizers_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token_id) for token_id in ids]
    assert all("\ufffd" not in piece for piece in pieces), "half a character"
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(ids)


def test_detokenizer_survives_bytes_that_are_no_text(tokenizer: Tokenizer) -> None:
    """An unfinished character, then a letter, then a stray byte at the end."""
    names = ["<0xF0>", "<0x9F>", "a", "<0x40>", "<0xE0>"]
    detokenizer = Detokenizer(tokenizer)
    vocabulary = tokenizer.get_vocab()
    pieces = [detokenizer.add(vocabulary[name]) for name in names]
    assert pieces == ["", "", "\ufffda", "@", ""]
    assert detokenizer.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["the s"], "What is "),
        (["zzz", "is"], "What "),
        (["What"], ""),
        (["tea."], "What is the sea?"),
        (["sea?!"], "What is the sea?"),
        ([], "What is the sea?"),
    ],
)
def test_stop_strings_across_tokens(tokenizer: Tokenizer, stop: list[str], expected: str) -> None:
    detokenizer = Detokenizer(tokenizer, stop)
    text = ""
    for token_id in tokenizer.encode("What is the sea?", add_special_tokens=False).ids:
        text += detokenizer.add(token_id)
        # What has been given out never has to be taken back.
        assert expected.startswith(text)
        if detokenizer.stopped:
            break
    assert text + detokenizer.finish() == expected
    assert detokenizer.stopped == (expected != "What is the sea?")


def test_empty_stop_string(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="cannot be empty"):
        Detokenizer(tokenizer, [""])
