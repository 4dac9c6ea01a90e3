"""The core: a chat completions request in, an answer or an iterator of chunks out."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from phi_edge.constraint import JsonConstraint, JsonGrammar
from phi_edge.engine import Run
from phi_edge.errors import ContextLengthError, HttpResponseError, PhiEdgeError, PromptError
from phi_edge.generation import GenerationEvent, TokenLogprobs, generate_events
from phi_edge.model import Model
from phi_edge.prompt import Prompt, plain_text
from phi_edge.sampling import Sampler
from phi_edge.text import Detokenizer, token_bytes

from .conversation import Conversation, ImagePolicy, SystemRole, make_conversation
from .images import read_image
from .request import ChatRequest, NamedTool, Tool
from .response import (
    AnswerMessage,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    FinishReason,
    Logprobs,
    ModelDescription,
    TokenLogprob,
    ToolCall,
    TopLogprob,
    Usage,
)
from .safety import ContentFilter, PromptFilteredError

# `detail` of an image -> most sub crops; the checkpoint's own number for "auto".
_NUM_CROPS = {"low": 1, "auto": None, "high": 16}


@dataclasses.dataclass(frozen=True)
class _Job:
    """A request that was found good, and is ready to run."""

    request: ChatRequest
    prompt: Prompt
    schema: dict[str, Any] | None
    cancel: threading.Event

    @property
    def calls_tool(self) -> bool:
        """Whether the answer has to be a call."""
        return self.request.tool_choice not in (None, "none", "auto")

    @property
    def may_call_tool(self) -> bool:
        """Whether the answer can be a call."""
        return bool(self.request.tools) and self.request.tool_choice != "none"


@dataclasses.dataclass(frozen=True)
class _Piece:
    """What came next in one completion."""

    text: str = ""
    tool_call: ToolCall | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    num_tokens: int = 0
    finish_reason: FinishReason | None = None


class ChatService:
    """Answers chat completions requests with a model.

    Requests may come from several threads; each has a key/value cache of its own.

    Attributes:
        model: The model.
        on_usage: Called with the usage of each answer, when it is complete.
    """

    def __init__(
        self,
        model: Model,
        *,
        image_policy: ImagePolicy = "last",
        system_role: SystemRole = "user",
        content_filters: Sequence[ContentFilter] = (),
        allowed_image_hosts: Collection[str] = (),
    ) -> None:
        """Set up the service.

        Args:
            model: From `load_model`; it stays the caller's to close.
            image_policy: How many images a conversation has; see `make_conversation`.
            system_role: What system messages become; see there.
            content_filters: Checked on every prompt and completion.
            allowed_image_hosts: Hosts from which image URLs may be fetched.
        """
        self.model = model
        self.on_usage: Callable[[Usage], None] = lambda _usage: None
        self._image_policy: ImagePolicy = image_policy
        self._system_role: SystemRole = system_role
        self._filters = tuple(content_filters)
        self._allowed_hosts = frozenset(allowed_image_hosts)

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self.info()["model_name"]

    def info(self) -> ModelDescription:
        """What the model is, as `/info` says it."""
        name = self.model.manifest.name
        is_published = name.lower().startswith("phi-3")
        return {
            # The API's spelling of the checkpoint's "Phi-3.5-vision-instruct".
            "model_name": name.replace("-instruct", "-Instruct"),
            "model_type": "chat-completions",
            "model_provider_name": "Microsoft" if is_published else "phi_edge",
        }

    def complete(self, request: ChatRequest, cancel: threading.Event | None = None) -> Completion:
        """Answer a request at once.

        Args:
            request: From `parse_request`.
            cancel: Setting it, from another thread, stops the work.

        Raises:
            HttpResponseError: The request cannot be answered.
            GenerationCancelled: `cancel` was set.
        """
        job = self._prepare(request, cancel)
        choices: list[Choice] = []
        num_completion_tokens = 0
        for index, pieces in self._choices(job):
            collected = list(pieces)
            num_completion_tokens += sum(piece.num_tokens for piece in collected)
            calls = [piece.tool_call for piece in collected if piece.tool_call]
            text = "".join(piece.text for piece in collected)
            message: AnswerMessage = {
                "role": "assistant",
                "content": None if calls else text,
                "tool_calls": calls or None,
            }
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "finish_reason": collected[-1].finish_reason or "stop",
                    "logprobs": self._logprobs(request, collected),
                }
            )
        usage = _usage(job.prompt, num_completion_tokens)
        self.on_usage(usage)
        return {
            "id": uuid.uuid4().hex,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model_name,
            "choices": choices,
            "usage": usage,
        }

    def stream(
        self, request: ChatRequest, cancel: threading.Event | None = None
    ) -> Iterator[Chunk]:
        """Answer a request chunk by chunk; see `complete`.

        What is wrong with the request is raised here, before the first chunk. Closing the
        iterator ends the work.
        """
        return self._chunks(self._prepare(request, cancel))

    def _chunks(self, job: _Job) -> Iterator[Chunk]:
        answer_id, created, model = uuid.uuid4().hex, int(time.time()), self.model_name

        def chunk(choice: ChunkChoice) -> Chunk:
            return {
                "id": answer_id,
                "object": "chat.completion.chunk",
                "created": created,
                "model": model,
                "choices": [choice],
            }

        num_completion_tokens = 0
        for index, pieces in self._choices(job):
            start: Delta = {"role": "assistant", "content": ""}
            yield chunk({"index": index, "delta": start, "finish_reason": None, "logprobs": None})
            for piece in pieces:
                num_completion_tokens += piece.num_tokens
                if not (piece.text or piece.tool_call or piece.logprobs or piece.finish_reason):
                    continue
                delta: Delta = (
                    {"tool_calls": [{"index": 0, **piece.tool_call}]}
                    if piece.tool_call
                    else {"content": piece.text}
                )
                result = chunk(
                    {
                        "index": index,
                        "delta": delta,
                        "finish_reason": piece.finish_reason,
                        "logprobs": self._logprobs(job.request, [piece]),
                    }
                )
                if piece.finish_reason and index == job.request.n - 1:
                    usage = _usage(job.prompt, num_completion_tokens)
                    result["usage"] = usage
                    self.on_usage(usage)
                yield result

    def _prepare(self, request: ChatRequest, cancel: threading.Event | None) -> _Job:
        """Everything that can be found wrong with a request is found here."""
        tools = request.tools if request.tool_choice != "none" else []
        conversation = make_conversation(
            request.messages,
            tools,
            self._image_policy,
            self._system_role,
            functools.partial(plain_text, self.model.tokenizer),
        )
        self._check_prompt(conversation)
        prompt = self._encode(conversation)
        self._check_length(request, prompt)
        vocab_size = self.model.manifest.model.vocab_size
        if request.logit_bias and max(map(int, request.logit_bias)) >= vocab_size:
            raise HttpResponseError(
                400, f"logit_bias: token ids end at {vocab_size - 1}", param="logit_bias"
            )
        schema, field = _schema(request)
        if schema is not None:
            try:
                self._grammar.constrain(schema)
            except ValueError as error:
                raise HttpResponseError(
                    400, f"{field}: the schema cannot be used: {error}", param=field
                ) from None
        return _Job(request, prompt, schema, cancel or threading.Event())

    def _check_prompt(self, conversation: Conversation) -> None:
        if any(content_filter.finds(conversation.text) for content_filter in self._filters):
            raise PromptFilteredError

    def _encode(self, conversation: Conversation) -> Prompt:
        images = []
        for part, field in conversation.images:
            image = read_image(part.image_url.url, field, self._allowed_hosts)
            num_crops = _NUM_CROPS[part.image_url.detail]
            try:
                images.append(self.model.preprocess(image, num_crops))
            except PhiEdgeError as error:
                raise HttpResponseError(400, f"{field}: {error}", param=field) from None
        try:
            return self.model.encode_prompt(conversation.text, images)
        except PromptError as error:
            raise HttpResponseError(400, f"messages: {error}", param="messages") from None

    def _check_length(self, request: ChatRequest, prompt: Prompt) -> None:
        context_length = self.model.manifest.model.context_length
        wanted = request.token_limit or 1
        if prompt.num_tokens + wanted > context_length:
            raise HttpResponseError(
                400,
                f"the prompt has {prompt.num_tokens:,} tokens and {wanted:,} are asked for, "
                f"{prompt.num_tokens + wanted:,} together; this model's context holds "
                f"{context_length:,}: shorten the messages, lower an image's `detail`, or lower "
                "max_tokens",
                code="context_length_exceeded",
                param="messages" if prompt.num_tokens >= context_length else "max_tokens",
            )

    @functools.cached_property
    def _grammar(self) -> JsonGrammar:
        model = self.model.manifest.model
        return JsonGrammar(self.model.tokenizer, model.vocab_size, model.eos_token_ids)

    def _choices(self, job: _Job) -> Iterator[tuple[int, Iterator[_Piece]]]:
        """Each choice's number with its pieces, which have to be taken before the next."""
        try:
            run = self.model.start(job.prompt, job.cancel)
            try:
                for index in range(job.request.n):
                    run.rewind(job.prompt.num_tokens)
                    yield index, self._pieces(job, run, index)
            finally:
                self.model.keep(job.prompt, run)
        except ContextLengthError as error:
            raise HttpResponseError(400, str(error), code="context_length_exceeded") from None

    def _pieces(self, job: _Job, run: Run, index: int) -> Iterator[_Piece]:
        pieces = self._read(self._events(job, run, index))
        if self._filters:
            pieces = self._filtered(pieces)
        return _tool_calls(pieces, job) if job.may_call_tool else pieces

    def _events(self, job: _Job, run: Run, index: int) -> Iterator[GenerationEvent]:
        request = job.request
        constraint: JsonConstraint | None = None
        if job.schema is not None:
            constraint = self._grammar.constrain(job.schema)
        sampler = Sampler(
            # A nucleus of nothing still has the most likely token.
            request.temperature if request.top_p else 0.0,
            request.top_p or 1.0,
            seed=None if request.seed is None else (request.seed + index) % 2**63,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            logit_bias={int(token): bias for token, bias in request.logit_bias.items()},
            constraint=constraint,
        )
        return generate_events(
            run,
            sampler,
            Detokenizer(self.model.tokenizer, request.stop_strings),
            self.model.limits(request.token_limit),
            (request.top_logprobs or 0) if request.logprobs else None,
            job.cancel,
        )

    def _read(self, events: Iterator[GenerationEvent]) -> Iterator[_Piece]:
        """Events as the API tells them; end tokens count, but have no log probabilities."""
        ends = self.model.manifest.model.eos_token_ids
        for event in events:
            logprobs: tuple[TokenLogprob, ...] = ()
            if event.logprobs is not None and event.token_id not in ends:
                logprobs = (self._token_logprob(event.token_id, event.logprobs),)
            yield _Piece(event.text, None, logprobs, 1, event.finish_reason)

    def _token_logprob(self, token_id: int, logprobs: TokenLogprobs) -> TokenLogprob:
        top = [self._top_logprob(*pair) for pair in logprobs.top]
        return {**self._top_logprob(token_id, logprobs.logprob), "top_logprobs": top}

    def _top_logprob(self, token_id: int, logprob: float) -> TopLogprob:
        content = token_bytes(self.model.tokenizer, token_id)
        return {
            "token": content.decode(errors="replace"),
            "logprob": logprob,
            "bytes": list(content),
        }

    def _filtered(self, pieces: Iterator[_Piece]) -> Iterator[_Piece]:
        """Pieces up to where a filter finds something, which is never sent on."""
        num_held = max(content_filter.num_held_characters for content_filter in self._filters)
        text, num_sent = "", 0
        for piece in pieces:
            text += piece.text
            if any(content_filter.finds(text) for content_filter in self._filters):
                yield _Piece(num_tokens=piece.num_tokens, finish_reason="content_filter")
                return
            end = len(text) if piece.finish_reason else max(num_sent, len(text) - num_held)
            yield dataclasses.replace(piece, text=text[num_sent:end])
            num_sent = end

    @staticmethod
    def _logprobs(request: ChatRequest, pieces: Sequence[_Piece]) -> Logprobs | None:
        if not request.logprobs:
            return None
        return {"content": [entry for piece in pieces for entry in piece.logprobs]}


def _usage(prompt: Prompt, num_completion_tokens: int) -> Usage:
    return {
        "prompt_tokens": prompt.num_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": prompt.num_tokens + num_completion_tokens,
    }


def _schema(request: ChatRequest) -> tuple[dict[str, Any] | None, str]:
    """What the completion has to validate by, and the field that says so."""
    if request.tools and request.tool_choice not in (None, "none", "auto"):
        choice = request.tool_choice
        tools = request.tools
        if isinstance(choice, NamedTool):
            tools = [tool for tool in tools if tool.function.name == choice.function.name]
        return {"anyOf": [_call_schema(tool) for tool in tools]}, "tools"
    response_format = request.response_format
    if response_format is None or response_format.type == "text":
        return None, ""
    if response_format.json_schema is None:
        return {"type": "object"}, "response_format"
    return response_format.json_schema.schema_, "response_format.json_schema.schema"


def _call_schema(tool: Tool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.function.name},
            "arguments": tool.function.parameters or {"type": "object"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _tool_calls(pieces: Iterator[_Piece], job: _Job) -> Iterator[_Piece]:
    """Hold back what could be a call, and give it as one if it is."""
    held: list[_Piece] = []
    for piece in pieces:
        held.append(piece)
        text = "".join(each.text for each in held).lstrip()
        if piece.finish_reason is None and (not text or text.startswith("{")):
            continue
        call = _parse_call(text, job.request.tools) if piece.finish_reason == "stop" else None
        if call is None:
            yield from held
        else:
            num_tokens = sum(each.num_tokens for each in held)
            logprobs = tuple(entry for each in held for entry in each.logprobs)
            yield _Piece("", call, logprobs, num_tokens)
            yield _Piece(finish_reason="tool_calls")
        held = []


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
