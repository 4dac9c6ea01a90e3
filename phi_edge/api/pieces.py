"""What becomes of a completion's text on its way out: content filters and tool calls."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Sequence

from .request import Tool
from .response import FinishReason, TokenLogprob, ToolCall
from .safety import ContentFilter


@dataclasses.dataclass(frozen=True)
class Piece:
    """What came next in one completion."""

    text: str = ""
    tool_call: ToolCall | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


class TextFilter:
    """Lets text through up to where a content filter finds something, which is never sent on."""

    def __init__(self, filters: Sequence[ContentFilter]) -> None:
        self._filters = filters
        self._num_held = max((each.num_held_characters for each in filters), default=0)
        self._text = ""
        self._num_sent = 0

    def add(self, piece: Piece) -> Piece:
        """Give the piece with the text that may be sent by now; nothing follows a finish reason."""
        if not self._filters:
            return piece
        self._text += piece.text
        if any(content_filter.finds(self._text) for content_filter in self._filters):
            return Piece(finish_reason="content_filter")
        end = len(self._text)
        if not piece.finish_reason:
            end = max(self._num_sent, end - self._num_held)
        start, self._num_sent = self._num_sent, end
        return dataclasses.replace(piece, text=self._text[start:end])


class CallReader:
    """Holds back what could be a tool call, and gives it as one if it is."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        """Start a completion; without tools, nothing is held back."""
        self._tools = tools
        self._held: list[Piece] = []

    def add(self, piece: Piece) -> list[Piece]:
        """Give the pieces that can be sent after this one."""
        if not self._tools:
            return [piece]
        self._held.append(piece)
        text = "".join(each.text for each in self._held).lstrip()
        if piece.finish_reason is None and (not text or text.startswith("{")):
            return []
        held, self._held = self._held, []
        call = _parse_call(text, self._tools) if piece.finish_reason == "stop" else None
        if call is None:
            return held
        logprobs = tuple(entry for each in held for entry in each.logprobs)
        return [Piece("", call, logprobs), Piece(finish_reason="tool_calls")]


def _parse_call(text: str, tools: Sequence[Tool]) -> ToolCall | None:
    try:
        call = json.loads(text)
        name, arguments = call["name"], call["arguments"]
    except (ValueError, TypeError, KeyError):
        return None
    if all(tool.function.name != name for tool in tools) or not isinstance(arguments, dict):
        return None
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    }
