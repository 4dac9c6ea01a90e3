"""Token ids -> text, one token at a time."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Give what a token stands for: a special one, its name; an id that is no token, nothing."""
    piece = tokenizer.id_to_token(token_id)
    if piece is None:
        return b""
    if byte := _BYTE_TOKEN.fullmatch(piece):
        return bytes.fromhex(byte[1])
    text: str = piece.replace(_SPACE, " ")
    return text.encode()


class Detokenizer:
    """Gives the text of a completion as far as it is certain.

    Bytes of a character that is not complete are held back, and so is whatever could be the
    beginning of a stop string. Special tokens have no text.

    The rules are those of the tokenizer's own decoder (spaces, byte fallback, no leading
    space), applied to bytes as they come. `tokenizers.decoders.DecodeStream` is not used since
    it raises on byte tokens that are not valid UTF-8, which a model may well generate.

    Attributes:
        stopped: A stop string was found; what came after it was dropped.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """Start a completion, which ends before any of the texts `stop`; none may be empty."""
        if "" in stop:
            raise ValueError("a stop string cannot be empty")
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = {token_id for token_id, token in added.items() if token.special}
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(stop)
        self._at_start = True
        self._held = ""
        self.stopped = False

    def add(self, token_id: int) -> str:
        """Give the text that is certain after this token; often empty."""
        return self._release(self._utf8.decode(self._token_bytes(token_id)))

    def finish(self) -> str:
        """Give the text that is still held back when the completion ends."""
        return self._release(self._utf8.decode(b"", final=True), at_end=True)

    def _token_bytes(self, token_id: int) -> bytes:
        if token_id in self._special_ids:
            return b""
        content = token_bytes(self._tokenizer, token_id)
        if self._at_start:
            content = content.removeprefix(b" ")
        self._at_start = False
        return content

    def _release(self, text: str, *, at_end: bool = False) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            # The one that is complete first, as it would be if the characters came one by one.
            _, end = min(found)
        else:
            end = len(self._held) - (0 if at_end else self._possible_stop_length())
        certain, self._held = self._held[:end], self._held[end:]
        return certain

    def _possible_stop_length(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max(map(len, self._stop), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
