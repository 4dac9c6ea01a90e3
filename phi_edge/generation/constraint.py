"""Which tokens may come next: constraints, and those of JSON schemas, from llguidance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from typing_extensions import Self, override

# As `json.dumps` writes it, which is what models have mostly seen.
_FORMAT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# Compiling takes time that grows with the square of a schema's size: 0.1 s for 1,000 properties,
# 20 s for 10,000. llguidance bounds its own work besides.
MAX_SCHEMA_CHARACTERS = 2**16
# llguidance does not bound this one: 16 patterns that one text has to match took 0.4 s, 24 more
# than a minute.
MAX_COMBINED_PATTERNS = 16
# Each pattern is compared with each other: 32 took up to 0.4 s, 200 simple ones 1 s.
MAX_NAME_PATTERNS = 32
# A divisor is counted with, in as many states: 9,999 took 0.06 s, 999,999 took 8 s, and so did
# 997 and 991 together. Zeros at the end are free.
MAX_DIVISOR = 10_000

# llguidance may quote the whole grammar.
_MAX_MESSAGE_CHARACTERS = 500


@runtime_checkable
class Constraint(Protocol):
    """Says which tokens may come next."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Tell which tokens may come: bool [vocab_size], at least one of them true."""

    def forced(self) -> list[int]:
        """Give the next tokens, as far as each is the only one allowed after those before it."""

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """Count how many of these tokens, from the first, are allowed one after the other."""

    def accept(self, token_id: int) -> None:
        """Go on with the token that was chosen.

        Raises:
            SchemaError: The schema is more than what can be followed.
        """

    def copy(self) -> Self:
        """Make another one that goes on from here."""


class SchemaError(ValueError):
    """A schema is invalid, too large, or cannot be guaranteed."""

    def __init__(self, problem: str) -> None:
        """Say what is wrong with "it", the schema."""
        super().__init__(f"the schema cannot be used: {problem}")


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
        """Make a constraint to JSON that validates by a schema.

        Raises:
            SchemaError: The schema is invalid, too large, or cannot be guaranteed.
        """
        from llguidance import LLMatcher

        with _as_schema_errors():
            formatted = json.dumps({**schema, "x-guidance": _FORMAT})
            if len(formatted) > MAX_SCHEMA_CHARACTERS:
                raise SchemaError(
                    f"it has {len(formatted):,} characters, and at most "
                    f"{MAX_SCHEMA_CHARACTERS:,} are compiled"
                )
            _check_cost(schema)
            plain = LLMatcher.grammar_from_json_schema(dict(schema))
            if problem := LLMatcher.validate_grammar(plain, self._tokenizer):
                raise SchemaError(problem[:_MAX_MESSAGE_CHARACTERS])
            # The tokenizer puts a space before the first word, which decoding takes away again.
            grammar = f'start: " "? value\nvalue: %json {formatted}'
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        return JsonConstraint(matcher, self._vocab_size)


def _check_cost(schema: Mapping[str, Any]) -> None:
    """Refuse what takes too long to compile, however short it is."""
    num_patterns, num_name_patterns, are_combined = 0, 0, False
    divisors: list[int] = []
    rest: list[Any] = [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, Mapping):
            num_patterns += "pattern" in value
            are_combined |= "allOf" in value or {"$ref", "pattern"} <= value.keys()
            if isinstance(names := value.get("patternProperties"), Mapping):
                num_name_patterns += len(names)
            divisor = value.get("multipleOf")
            if isinstance(divisor, int | float) and not isinstance(divisor, bool):
                divisors.append(_without_zeros(divisor))
            rest += value.values()
        elif isinstance(value, list):
            rest += value
    # Several patterns may have to hold for one text, and several divisors for one number.
    if are_combined and num_patterns > MAX_COMBINED_PATTERNS:
        raise SchemaError(
            f"it has more than {MAX_COMBINED_PATTERNS} patterns, and combines some of them"
        )
    if num_name_patterns > MAX_NAME_PATTERNS:
        raise SchemaError(f"it has more than {MAX_NAME_PATTERNS} patterns in patternProperties")
    if max(sum(divisors), math.lcm(*divisors)) > MAX_DIVISOR:
        raise SchemaError(
            f"its values of multipleOf, without zeros at their ends, come to more than "
            f"{MAX_DIVISOR:,} together"
        )


def _without_zeros(number: float) -> int:
    """Give the digits of a number, from the first to the last that is not zero."""
    digits = Decimal(str(number)).normalize().as_tuple().digits
    return int("".join(map(str, digits)))


@contextmanager
def _as_schema_errors() -> Iterator[None]:
    """Rust code that gives up raises what is no `Exception` and has no importable class."""
    try:
        yield
    except SchemaError:
        raise
    except ValueError as error:
        raise SchemaError(str(error)[:_MAX_MESSAGE_CHARACTERS]) from None
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise SchemaError("it is too complex") from None
        raise


class JsonConstraint(Constraint):
    """Allows what JSON by a schema can go on with, and end tokens where it is complete."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @override
    def copy(self) -> JsonConstraint:
        return JsonConstraint(self._matcher.deep_copy(), self._vocab_size)

    @override
    def allowed(self) -> npt.NDArray[np.bool_]:
        with _as_schema_errors():
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(mask, count=self._vocab_size, bitorder="little").astype(np.bool_)

    @override
    def forced(self) -> list[int]:
        with _as_schema_errors():
            token_ids: list[int] = self._matcher.compute_ff_tokens()
        return token_ids

    @override
    def count_allowed(self, token_ids: Sequence[int]) -> int:
        with _as_schema_errors():
            count: int = self._matcher.validate_tokens(token_ids)
        return count

    @override
    def accept(self, token_id: int) -> None:
        with _as_schema_errors():
            is_allowed = self._matcher.consume_token(token_id)
        if not is_allowed:
            problem = self._matcher.get_error()[:_MAX_MESSAGE_CHARACTERS]
            raise SchemaError(f"it cannot be followed: {problem}")
