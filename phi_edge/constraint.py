"""Completions that have to be JSON: which tokens may come next, from llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

# As `json.dumps` writes it, which is what models have mostly seen.
_FORMAT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class JsonGrammar:
    """Makes constraints for one model's vocabulary."""

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        from llguidance import LLTokenizer

        self._vocab_size = vocab_size
        self._tokenizer = LLTokenizer(
            tokenizer.to_str(), n_vocab=vocab_size, eos_token=list(eos_token_ids)
        )

    def constrain(self, schema: Mapping[str, Any]) -> JsonConstraint:
        """A constraint to JSON that validates by a schema.

        Raises:
            ValueError: The schema is invalid, or cannot be guaranteed.
        """
        from llguidance import LLMatcher

        plain = LLMatcher.grammar_from_json_schema(dict(schema))
        if problem := LLMatcher.validate_grammar(plain, self._tokenizer):
            raise ValueError(problem)
        formatted = json.dumps({**schema, "x-guidance": _FORMAT})
        # The tokenizer puts a space before the first word, which decoding takes away again.
        grammar = f'start: " "? value\nvalue: %json {formatted}'
        return JsonConstraint(LLMatcher(self._tokenizer, grammar, log_level=0), self._vocab_size)


class JsonConstraint:
    """A `phi_edge.sampling.Constraint`; allows end tokens where the JSON is complete."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """See `Constraint.allowed`."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(mask, count=self._vocab_size, bitorder="little").astype(np.bool_)

    def accept(self, token_id: int) -> None:
        """See `Constraint.accept`."""
        if not self._matcher.consume_token(token_id):
            raise ValueError(f"the schema cannot be followed: {self._matcher.get_error()}")
