"""Protobuf messages, of which ONNX graphs are made, read without a library.

Wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Give number and content of a message's fields.

    Contents are integers as they are stored, without a sign, or bytes: strings and messages that
    are in it. Floating-point numbers are left out.

    Raises:
        ValueError: It is none.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire_type, number = tag & 7, tag >> 3
        value, size = 0, {_FIXED64: 8, _FIXED32: 4}.get(wire_type, 0)
        if wire_type in (_VARINT, _BYTES):
            value, at = _varint(message, at)
            size = value if wire_type == _BYTES else 0
        elif not size:
            raise ValueError(f"it has a field of wire type {wire_type}")
        if at + size > len(message) or not 0 < number < 2**29:
            raise ValueError("it is no protobuf message")
        if wire_type == _VARINT:
            yield number, value
        elif wire_type == _BYTES:
            yield number, message[at : at + size]
        at += size


def messages(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Give number and content of the fields that hold bytes."""
    for number, content in fields(message):
        if isinstance(content, memoryview):
            yield number, content


def integers(content: int | memoryview) -> list[int]:
    """Read what may be one integer or several in a row, with their signs."""
    values = []
    if isinstance(content, int):
        values = [content]
    else:
        at = 0
        while at < len(content):
            value, at = _varint(content, at)
            values.append(value)
    return [value - 2**64 if value >= 2**63 else value for value in values]


def text(content: memoryview) -> str:
    """Read a string."""
    return bytes(content).decode(errors="replace")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number of variable length, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at == len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it ends in the middle of a number, or has one that is too long")
