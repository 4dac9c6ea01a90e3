"""What a model generates -> the bodies of answers, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer

from phi_edge.generation import Generation, GenerationEvent, TokenUsage
from phi_edge.text.detokenizer import token_bytes

from .pieces import Piece
from .request import ChatRequest
from .response import (
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    Logprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
)


def make_piece(tokenizer: Tokenizer, eos_token_ids: Sequence[int], event: GenerationEvent) -> Piece:
    """Tell an event as the API does: end tokens count, but have no log probabilities."""

    def entry(token_id: int, logprob: float) -> TopLogprob:
        content = token_bytes(tokenizer, token_id)
        token = content.decode(errors="replace")
        return {"token": token, "logprob": logprob, "bytes": list(content)}

    logprobs: tuple[TokenLogprob, ...] = ()
    found = event.logprobs
    if found is not None and event.token_id not in eos_token_ids:
        top = [entry(*pair) for pair in found.top]
        logprobs = ({**entry(event.token_id, found.logprob), "top_logprobs": top},)
    return Piece(event.text, None, logprobs, event.finish_reason)


def make_completion(
    model_name: str,
    request: ChatRequest,
    pieces: Iterable[tuple[int, Piece]],
    generation: Generation,
) -> Completion:
    """Make the body of a whole answer.

    The pieces are those of all choices as they come, each with its choice's number. The usage of
    the generation that they come from is complete when they are.
    """
    collected: list[list[Piece]] = [[] for _ in range(request.n)]
    for index, piece in pieces:
        collected[index].append(piece)
    choices = [_choice(request, index, own) for index, own in enumerate(collected)]
    return {
        "id": uuid.uuid4().hex,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model_name,
        "choices": choices,
        "usage": _usage(generation.usage),
    }


def _choice(request: ChatRequest, index: int, pieces: Sequence[Piece]) -> Choice:
    calls = [piece.tool_call for piece in pieces if piece.tool_call]
    text = "".join(piece.text for piece in pieces)
    return {
        "index": index,
        "message": {
            "role": "assistant",
            "content": None if calls else text,
            "tool_calls": calls or None,
        },
        "finish_reason": pieces[-1].finish_reason or "stop",
        "logprobs": _logprobs(request, pieces),
    }


def make_chunks(
    model_name: str,
    request: ChatRequest,
    pieces: Iterable[tuple[int, Piece]],
    generation: Generation,
) -> Iterator[Chunk]:
    """Make the bodies of a streamed answer's chunks; the arguments are `make_completion`'s.

    The first chunk of each choice has the role. The last of all has the usage.
    """
    answer_id, created = uuid.uuid4().hex, int(time.time())
    num_running = request.n
    started: set[int] = set()
    for index, piece in pieces:
        delta: Delta = {"content": piece.text}
        if index not in started:
            started.add(index)
            delta = {"role": "assistant", "content": ""}
        elif piece.tool_call:
            delta = {"tool_calls": [{"index": 0, **piece.tool_call}]}
        elif not (piece.text or piece.logprobs or piece.finish_reason):
            continue
        choice: ChunkChoice = {
            "index": index,
            "delta": delta,
            "finish_reason": piece.finish_reason,
            "logprobs": _logprobs(request, [piece]),
        }
        chunk: Chunk = {
            "id": answer_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model_name,
            "choices": [choice],
        }
        num_running -= piece.finish_reason is not None
        if not num_running:
            chunk["usage"] = _usage(generation.usage)
        yield chunk


def _logprobs(request: ChatRequest, pieces: Sequence[Piece]) -> Logprobs | None:
    if not request.logprobs:
        return None
    return {"content": [entry for piece in pieces for entry in piece.logprobs]}


def _usage(usage: TokenUsage) -> Usage:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
