"""Content filters, for prompts and completions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer
from typing_extensions import override

from phi_edge.engine.session import engine_errors, open_session
from phi_edge.errors import HttpResponseError, PackageError


class ContentFilter(Protocol):
    """Finds what must not be said."""

    @property
    def num_held_characters(self) -> int:
        """How much of a stream's end is held back, since what follows could make it a find."""

    def finds(self, text: str) -> bool:
        """Tell whether a text has it."""


class BlockList(ContentFilter):
    """Finds words and phrases, whatever their case, as whole words."""

    def __init__(self, terms: Iterable[str]) -> None:
        """Take the terms; none may be empty."""
        self._terms = [" ".join(term.split()) for term in terms]
        if not all(self._terms):
            raise ValueError("a block list cannot have an empty term")
        any_term = "|".join(re.escape(term).replace(r"\ ", r"\s+") for term in self._terms)
        self._pattern = re.compile(rf"(?<!\w)(?:{any_term})(?!\w)", re.IGNORECASE)

    @property
    @override
    def num_held_characters(self) -> int:
        return max(map(len, self._terms), default=0)

    @override
    def finds(self, text: str) -> bool:
        return bool(self._terms) and self._pattern.search(text) is not None


class TextClassifier(ContentFilter):
    """Finds what an ONNX text classifier puts into one of the labels to block.

    Takes the folder that the usual exporters write for a sequence classification model:
    `model.onnx` with the inputs `input_ids` and `attention_mask` (int64 [1, tokens]) and the
    output `logits` (float32 [1, labels]), and `tokenizer.json`.
    """

    num_held_characters = 0

    def __init__(
        self,
        folder: str | Path,
        blocked_labels: Collection[int],
        threshold: float = 0.5,
        max_tokens: int = 512,
    ) -> None:
        """Load the classifier.

        Args:
            folder: Where it is.
            blocked_labels: Numbers of the labels that are blocked.
            threshold: Least probability of all of them together.
            max_tokens: Longer texts are read in windows of so many tokens, each of which begins
                within the one before.

        Raises:
            PackageError: The folder lacks a file, or the tokenizer cannot be read.
            EngineError: The graph cannot be loaded.
        """
        folder = Path(folder)
        for name in ("model.onnx", "tokenizer.json"):
            if not (folder / name).is_file():
                raise PackageError(f"{folder} is no text classifier: it has no {name}")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_tokens, stride=max_tokens // 4)
        self._session = open_session(folder / "model.onnx", "cpu")
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._labels = sorted(blocked_labels)
        self._threshold = threshold

    @override
    def finds(self, text: str) -> bool:
        first = self._tokenizer.encode(text)
        windows = [first, *first.overflowing]
        return any(self._probability(window.ids) >= self._threshold for window in windows)

    def _probability(self, ids: list[int]) -> float:
        input_ids = np.array([ids], np.int64)
        feeds = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.zeros_like(input_ids)
        with engine_errors("running a text classifier"):
            (logits,) = self._session.run(["logits"], feeds)
        scaled = np.exp(np.asarray(logits[0], np.float64) - logits[0].max())
        return float(scaled[self._labels].sum() / scaled.sum())


class PromptFilteredError(HttpResponseError):
    """A filter found something in the prompt."""

    def __init__(self) -> None:
        super().__init__(
            400,
            "a content filter of this machine found the prompt to be harmful: change the prompt "
            "and try again",
            code="content_filter",
            param="prompt",
        )
