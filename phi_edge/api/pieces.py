"""What becomes of a completion's text on its way out: content filters and tool calls."""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress

from .request import ChatRequest, NamedTool
from .response import FinishReason, FunctionCall, TokenLogprob, ToolCall
from .safety import ContentFilter

# How a call begins: its name, and its arguments if the text goes so far.
_CALL = re.compile(r'\{\s*"name"\s*:\s*"([\w.-]+)"(?:\s*,\s*"arguments"\s*:\s*(\{.*))?', re.DOTALL)
_DECODER = json.JSONDecoder()


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

    def __init__(self, request: ChatRequest) -> None:
        """Start a completion; where no tool may be called, nothing is held back."""
        names = [tool.function.name for tool in request.tools] if request.may_call_tool else []
        if isinstance(request.tool_choice, NamedTool):
            names = [request.tool_choice.function.name]
        self._names = list(dict.fromkeys(names))
        self._must_call = request.must_call_tool
        self._held: list[Piece] = []

    def add(self, piece: Piece) -> list[Piece]:
        """Give the pieces that can be sent after this one.

        A call that is cut short is a call all the same, with its arguments as far as they go.
        """
        if not self._names:
            return [piece]
        self._held.append(piece)
        text = "".join(each.text for each in self._held).lstrip()
        if piece.finish_reason is None and (not text or text.startswith("{")):
            return []
        held, self._held = self._held, []
        finish_reason = piece.finish_reason
        function = self._whole_call(text)
        if finish_reason == "stop":  # an end token, or a stop string in the middle of a call
            finish_reason = "tool_calls" if function else "length"
        if function is None and (self._must_call or _is_cut(text, piece.finish_reason)):
            function = self._cut_call(text)
        if function is None and not self._must_call:
            return held
        logprobs = tuple(entry for each in held for entry in each.logprobs)
        call = None if function is None else _tool_call(function)
        return [Piece("", call, logprobs), Piece(finish_reason=finish_reason)]

    def _whole_call(self, text: str) -> FunctionCall | None:
        try:
            call = json.loads(text)
            name, arguments = call["name"], call["arguments"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if name not in self._names or not isinstance(arguments, dict):
            return None
        return {"name": name, "arguments": json.dumps(arguments)}

    def _cut_call(self, text: str) -> FunctionCall | None:
        """Read the beginning of a call; one that has to be made may be known without its name."""
        found = _CALL.match(text)
        name, arguments = found.groups() if found else (None, None)
        with suppress(ValueError, RecursionError):  # whole arguments, and more after them
            arguments = arguments and arguments[: _DECODER.raw_decode(arguments)[1]]
        if self._must_call:
            name = self._names[0] if len(self._names) == 1 else name
            arguments = arguments or ""
        if name not in self._names or arguments is None:
            return None
        return {"name": name, "arguments": arguments}


def _is_cut(text: str, finish_reason: FinishReason | None) -> bool:
    """Tell whether something else than the model ended a text, in the middle of its JSON."""
    if finish_reason in (None, "stop"):
        return False
    try:
        _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return True
    return False


def _tool_call(function: FunctionCall) -> ToolCall:
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
