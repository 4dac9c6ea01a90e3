"""Views of JSON: what the messages and answers of `phi_edge.models` are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import datetime, timezone
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


class Field(Generic[T]):
    """A field of the JSON as an attribute."""

    def __init__(self, read: Callable[[Any], T]) -> None:
        """Take what makes the attribute's value out of the JSON's."""
        self._read = read
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: JsonView | None, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]  # of the class, which nobody asks for
        value = instance.get(self._name)
        return value if value is None else self._read(value)  # type: ignore[return-value]

    def __set__(self, instance: JsonView, value: Any) -> None:
        instance[self._name] = value


class JsonView(MutableMapping[str, Any]):
    """A JSON object with attributes. Views of the same JSON see each other's changes."""

    _constants: ClassVar[Mapping[str, str]] = {}
    _positional: ClassVar[str | None] = None

    def __init_subclass__(cls, positional: str | None = None, **constants: str) -> None:
        """Take the field that may be given by position, and what the JSON always says."""
        super().__init_subclass__()
        cls._positional = positional
        cls._constants = constants

    def __init__(self, *args: Any, **fields: Any) -> None:
        """Take the JSON's mapping, or its fields by keyword; those that are None are left out.

        Raises:
            TypeError: More was given than the object has.
        """
        if len(args) > 1:
            raise TypeError(f"{type(self).__name__} takes one positional argument")
        if args and isinstance(args[0], Mapping):
            self._json = args[0] if isinstance(args[0], dict) else to_json(args[0])
        else:
            if args:
                if self._positional is None:
                    raise TypeError(f"{type(self).__name__} takes a mapping or keywords")
                fields = {self._positional: args[0], **fields}
            self._json = {key: to_json(value) for key, value in fields.items() if value is not None}
        for key, value in self._constants.items():
            self._json.setdefault(key, value)

    def __getitem__(self, key: str) -> Any:
        return self._json[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._json[key] = to_json(value)

    def __delitem__(self, key: str) -> None:
        del self._json[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._json)

    def __len__(self) -> int:
        return len(self._json)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._json == to_json(other)

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return str(self._json)

    def as_dict(self) -> dict[str, Any]:
        """Copy the JSON."""
        copy: dict[str, Any] = json.loads(json.dumps(self._json))
        return copy


def to_json(value: Any) -> Any:
    """Write a value as JSON has it; views give the JSON that they look at."""
    if isinstance(value, JsonView):
        return value._json  # noqa: SLF001 - the same module
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def each(read: Callable[[Any], T]) -> Callable[[list[Any]], list[T]]:
    """Make what reads a list, of what reads one of its values."""
    return lambda values: [read(value) for value in values]


def read_time(seconds: float) -> datetime:
    """Read a time, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def member_of(kind: type[E]) -> Callable[[str], E | str]:
    """Make what reads the name of an enum's member; one that the enum does not know stays."""
    return lambda name: kind(name) if name in [member.value for member in kind] else name
