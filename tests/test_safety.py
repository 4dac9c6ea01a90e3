"""Content filters by themselves."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from phi_edge import PackageError
from phi_edge.api.safety import BlockList, TextClassifier

VOCABULARY = ["[CLS]", "[SEP]", "fork", "spoon", "knife"]
# Label 1 for a knife; every window has to begin with [CLS], or label 2 comes.
CLASSIFIER = """
    <ir_version: 8, opset_import: ["": 17]>
    classifier (int64[1, tokens] input_ids, int64[1, tokens] attention_mask)
        => (float[1, 3] logits)
    <float[5, 3] table = {4,0,0, 0,0,0, 0,0,0, 0,0,0, 0,9,0},
     float[3] bias = {0,0,2}, int64[1] tokens_axis = {1}>
    {
        of_tokens = Gather(table, input_ids)
        seen = Cast<to=1>(attention_mask)
        mask = Unsqueeze(seen, tokens_axis)
        summed = MatMul(mask, of_tokens)
        of_text = Squeeze(summed, tokens_axis)
        logits = Add(of_text, bias)
    }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier as the usual exporters write it."""
    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="fork"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    onnx.save(onnx.parser.parse_model(CLASSIFIER), tmp_path / "model.onnx")
    return tmp_path


@pytest.mark.parametrize("num_words", [0, 5, 6, 7, 40])
def test_a_classifier_reads_the_whole_text_in_windows(folder: Path, num_words: int) -> None:
    text = "spoon " * num_words
    harmful = TextClassifier(folder, blocked_labels=[1], max_tokens=8)
    assert harmful.finds(f"{text} knife")
    assert harmful.finds(f"knife {text}")
    assert not harmful.finds(text)
    assert not TextClassifier(folder, blocked_labels=[2], max_tokens=8).finds(text)


def test_labels_that_are_blocked_count_together(folder: Path) -> None:
    # Without a knife the logits are 4, 0 and 2: label 2 has a probability of 0.117.
    for threshold, finds in ((0.11, True), (0.12, False)):
        assert TextClassifier(folder, [2], threshold).finds("spoon") is finds
    for threshold, finds in ((0.13, True), (0.14, False)):
        assert TextClassifier(folder, [1, 2], threshold).finds("spoon") is finds


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_folder_that_is_no_classifier(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(PackageError, match=f"no text classifier: it has no {name}"):
        TextClassifier(folder, [1])


def test_a_block_list_finds_whole_words_whatever_their_case() -> None:
    terms = BlockList(["knife", "sharp  edge"])
    for text in ("A KNIFE.", "a sharp\n edge", "knife"):
        assert terms.finds(text)
    for text in ("knifes", "penknife", "sharp", ""):
        assert not terms.finds(text)
    with pytest.raises(ValueError, match="empty term"):
        BlockList([" "])
