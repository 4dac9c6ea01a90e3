"""Completions that have to be JSON: which tokens may come next, from llguidance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

# As `json.dumps` writes it, which is what models have mostly seen.
_FORMAT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# Compiling takes time that grows with the square of a schema's size: 0.1 s for 1,000 properties,
# 20 s for 10,000. llguidance bounds its own work besides.
MAX_SCHEMA_CHARACTERS = 2**16
# llguidance does not bound this one: 16 patterns that one text has to match took 0.4 s, 24 more
# than a minute.
MAX_COMBINED_PATTERNS = 16

# llguidance may quote the whole grammar.
_MAX_MESSAGE_CHARACTERS = 500


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
            ValueError: The schema is invalid, too large, or cannot be guaranteed.
        """
        from llguidance import LLMatcher

        formatted = json.dumps({**schema, "x-guidance": _FORMAT})
        if len(formatted) > MAX_SCHEMA_CHARACTERS:
            raise ValueError(
                f"it has {len(formatted):,} characters, and at most {MAX_SCHEMA_CHARACTERS:,} are "
                "compiled"
            )
        if _count_combined_patterns(schema) > MAX_COMBINED_PATTERNS:
            raise ValueError(
                f"it has more than {MAX_COMBINED_PATTERNS} patterns, and combines some of them"
            )
        with _panics_as_errors():
            plain = LLMatcher.grammar_from_json_schema(dict(schema))
            if problem := LLMatcher.validate_grammar(plain, self._tokenizer):
                raise ValueError(problem[:_MAX_MESSAGE_CHARACTERS])
            # The tokenizer puts a space before the first word, which decoding takes away again.
            grammar = f'start: " "? value\nvalue: %json {formatted}'
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        return JsonConstraint(matcher, self._vocab_size)


def _count_combined_patterns(schema: Mapping[str, Any]) -> int:
    """Patterns of a schema, if several of them may have to hold for one text; otherwise 0."""
    num_patterns, are_combined = 0, False
    rest: list[Any] = [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, Mapping):
            num_patterns += "pattern" in value
            are_combined |= "allOf" in value or {"$ref", "pattern"} <= value.keys()
            rest += value.values()
        elif isinstance(value, list):
            rest += value
    return num_patterns if are_combined else 0


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Rust code that gives up raises what is no `Exception` and has no importable class."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise ValueError("it is too complex") from None
        raise


class JsonConstraint:
    """A `phi_edge.sampling.Constraint`; allows end tokens where the JSON is complete."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """See `Constraint.allowed`."""
        with _panics_as_errors():
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(mask, count=self._vocab_size, bitorder="little").astype(np.bool_)

    def accept(self, token_id: int) -> None:
        """See `Constraint.accept`."""
        with _panics_as_errors():
            is_allowed = self._matcher.consume_token(token_id)
        if not is_allowed:
            raise ValueError(f"the schema cannot be followed: {self._matcher.get_error()}")
