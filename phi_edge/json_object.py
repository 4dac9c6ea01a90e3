"""Objects with a JSON object's fields: what `phi_edge.models` is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import datetime, timezone
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Enum)
V = TypeVar("V", bound="JsonObject")


class Field(Generic[T]):
    """A field of the JSON as an attribute: a text, a number, or what is read from one."""

    def __init__(self, read: Callable[[Any], T]) -> None:
        """Take a function from the JSON's value to the attribute's."""
        self._read = read
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: JsonObject | None, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]  # of the class, which nobody asks for
        value = instance.get(self._name)
        return value if value is None else self._read(value)  # type: ignore[return-value]

    def __set__(self, instance: JsonObject, value: Any) -> None:
        if value is None:
            instance.pop(self._name, None)
        else:
            instance[self._name] = value

    def stored(self, value: Any) -> Any:
        """Convert a value to what the object stores."""
        return to_json(value)


class TimeField(Field[datetime]):
    """A time in UTC; the JSON has the seconds since 1970."""

    def __init__(self) -> None:
        super().__init__(lambda seconds: datetime.fromtimestamp(seconds, timezone.utc))

    def stored(self, value: Any) -> Any:
        """Convert a time to seconds."""
        return int(value.timestamp()) if isinstance(value, datetime) else value


class Nested(Field[T]):
    """A field that holds an object or several: the attribute and the key give the same ones."""

    def __get__(self, instance: JsonObject | None, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        return instance.get(self._name)  # type: ignore[return-value]

    def stored(self, value: Any) -> Any:
        """Convert mappings to objects."""
        return self._read(value)


class JsonObject(MutableMapping[str, Any]):
    """A JSON object whose fields are keys, and attributes where the class knows them.

    Keys that the class does not know are kept. Attributes that are not there are None, and setting
    one to None takes it away.
    """

    _fields: ClassVar[Mapping[str, Field[Any]]] = {}
    _constants: ClassVar[Mapping[str, str]] = {}
    _positional: ClassVar[str | None] = None

    def __init_subclass__(cls, positional: str | None = None, **constants: str) -> None:
        """Take the field that may be given by position, and what the JSON always says."""
        super().__init_subclass__()
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        cls._fields = {**cls._fields, **own}
        cls._positional = positional or cls._positional
        cls._constants = {**cls._constants, **constants}

    def __init__(self, *args: Any, **fields: Any) -> None:
        """Take a mapping, or the fields by keyword; those that are None are left out.

        Raises:
            TypeError: There is no such field, or more was given than the object takes.
            ValueError: A field was given twice.
        """
        name = type(self).__name__
        self._kept: dict[str, Any] = {}
        if len(args) > 1:
            raise TypeError(
                f"{name}.__init__() takes 2 positional arguments but {len(args) + 1} were given"
            )
        if args and isinstance(args[0], Mapping):
            self.update(args[0])
            for key, value in self._constants.items():
                self._kept.setdefault(key, value)
            return
        if args:
            if self._positional is None:
                raise TypeError(f"{name} takes a mapping or keywords")
            if fields.get(self._positional) is not None:
                raise ValueError(
                    f"{self._positional} cannot be provided as positional and keyword arguments"
                )
            fields[self._positional] = args[0]
        for key, value in {**self._constants, **fields}.items():
            if key not in self._fields:
                raise TypeError(f"{name}.__init__() got an unexpected keyword argument {key!r}")
            if value is not None:
                self[key] = value

    def __getitem__(self, key: str) -> Any:
        return self._kept[key]

    def __setitem__(self, key: str, value: Any) -> None:
        field = self._fields.get(key)
        self._kept[key] = to_json(value) if field is None else field.stored(value)

    def __delitem__(self, key: str) -> None:
        del self._kept[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and to_json(self) == to_json(other)

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return str(self._kept)

    def as_dict(self, *, exclude_readonly: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Copy the JSON; no field is read-only."""
        copy: dict[str, Any] = to_json(self)
        return copy


def to_json(value: Any) -> Any:
    """Copy a value as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def object_of(kind: type[V]) -> Callable[[Any], V]:
    """Return a function that converts a mapping to an object.

    It gives anything else back as it is: the service says what is wrong with it.
    """
    return lambda value: (
        kind(value) if isinstance(value, Mapping) and not isinstance(value, kind) else value
    )


def list_of(convert: Callable[[Any], T]) -> Callable[[Any], list[T]]:
    """Return a function that converts each item of a list, and gives anything else back."""

    def convert_all(values: Any) -> Any:
        return list(map(convert, values)) if isinstance(values, list | tuple) else values

    return convert_all


def member_of(kind: type[E]) -> Callable[[str], E | str]:
    """Return a function from a value to the enum's member; an unknown value stays."""
    return lambda name: kind(name) if name in [member.value for member in kind] else name
