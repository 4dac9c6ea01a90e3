"""The core: a chat completions request in, an answer or an iterator of chunks out."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image
from typing_extensions import TypedDict

from phi_edge.cancel import CancelToken
from phi_edge.errors import (
    ContextLengthError,
    HttpResponseError,
    MemoryLimitError,
    PromptError,
)
from phi_edge.generation.constraint import SchemaError
from phi_edge.generation.loop import Generation, GenerationEvent, TokenUsage
from phi_edge.generation.sampling import TokenLogprobs
from phi_edge.image.crops import DETAIL_CROPS, count_tokens, padded_size
from phi_edge.image.files import decode_image
from phi_edge.loaded_model import Model
from phi_edge.text.detokenizer import token_bytes
from phi_edge.text.prompt import Prompt, longest_token, plain_text

from .conversation import Conversation, ImagePolicy, SystemRole, make_conversation
from .images import naming, read_image
from .pieces import CallReader, Piece, TextFilter
from .request import ChatRequest, NamedTool, Tool
from .response import (
    AnswerMessage,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    Logprobs,
    ModelDescription,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from .safety import ContentFilter, PromptFilteredError


@dataclasses.dataclass(frozen=True)
class _Job:
    """A request that was found good.

    Attributes:
        request: The request.
        schema_field: The field that says what the completion has to validate by, if one does.
        generation: Its completions, of which nothing is done yet.
    """

    request: ChatRequest
    schema_field: str
    generation: Generation


class ServiceOptions(TypedDict, total=False):
    """Arguments of `ChatService`, as keywords of what makes one."""

    image_policy: ImagePolicy
    system_role: SystemRole
    content_filters: Sequence[ContentFilter]
    allowed_image_hosts: Collection[str]
    max_ttft_ms: float | None


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
        max_ttft_ms: float | None = None,
    ) -> None:
        """Set up the service.

        Args:
            model: From `load_model`; it stays the caller's to close.
            image_policy: How many images a conversation has; see `make_conversation`.
            system_role: What system messages become; see there.
            content_filters: Checked on every prompt and completion.
            allowed_image_hosts: Hosts from which image URLs may be fetched.
            max_ttft_ms: Gives images fewer crops than their `detail` says, until the first token
                is predicted to come within so many milliseconds; see `Model.fit_crops`.

        Raises:
            CalibrationError: `max_ttft_ms` is given, and the machine was not calibrated.
        """
        if max_ttft_ms is not None:
            model.calibration  # noqa: B018 - rather here than at the first request
        self.model = model
        self.on_usage: Callable[[Usage], None] = lambda _usage: None
        self._image_policy: ImagePolicy = image_policy
        self._system_role: SystemRole = system_role
        self._filters = tuple(content_filters)
        self._allowed_hosts = frozenset(allowed_image_hosts)
        self._max_ttft_ms = max_ttft_ms
        self._longest_token = longest_token(model.tokenizer)

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
        pieces: list[list[Piece]] = [[] for _ in range(request.n)]
        for index, piece in self._pieces(job):
            pieces[index].append(piece)
        for index, collected in enumerate(pieces):
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
        usage = _usage(job.generation.usage)
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

        num_running = job.request.n
        started: set[int] = set()
        for index, piece in self._pieces(job):
            delta: Delta = {"content": piece.text}
            if index not in started:
                started.add(index)
                delta = {"role": "assistant", "content": ""}
            elif piece.tool_call:
                delta = {"tool_calls": [{"index": 0, **piece.tool_call}]}
            elif not (piece.text or piece.logprobs or piece.finish_reason):
                continue
            result = chunk(
                {
                    "index": index,
                    "delta": delta,
                    "finish_reason": piece.finish_reason,
                    "logprobs": self._logprobs(job.request, [piece]),
                }
            )
            num_running -= piece.finish_reason is not None
            if not num_running:
                usage = _usage(job.generation.usage)
                result["usage"] = usage
                self.on_usage(usage)
            yield result

    def _prepare(self, request: ChatRequest, cancel: threading.Event | None) -> _Job:
        """Everything that can be found wrong with a request is found here."""
        # First what costs nothing: to tokenize a hopeless text, or decode its images, takes long.
        num_text_tokens = self._least_text_tokens(request)
        self._check_context(request, num_text_tokens)
        tools = request.tools if request.tool_choice != "none" else []
        conversation = make_conversation(
            request.messages,
            tools,
            self._image_policy,
            self._system_role,
            functools.partial(plain_text, self.model.tokenizer),
        )
        self._check_prompt(conversation)
        images = [
            read_image(part.image_url.url, field, self._allowed_hosts)
            for part, field in conversation.images
        ]
        num_crops = self._num_crops(conversation, images)
        num_image_tokens = _least_image_tokens(conversation, images, num_crops)
        self._check_context(request, num_text_tokens + num_image_tokens)
        prompt = self._encode(conversation, images, num_crops)
        self._check_context(request, prompt.num_tokens, known="")
        schema, schema_field = _schema(request)
        options = request.options(schema)
        try:
            with _naming_schema(schema_field):
                generation = self.model.generate(prompt, options, cancel=cancel or CancelToken())
        except MemoryLimitError as error:
            raise HttpResponseError(400, str(error), code="memory_limit_exceeded") from None
        except ValueError as error:
            field, colon, _ = str(error).partition(":")
            raise HttpResponseError(400, str(error), param=field if colon else None) from None
        return _Job(request, schema_field, generation)

    def _check_prompt(self, conversation: Conversation) -> None:
        if any(content_filter.finds(conversation.text) for content_filter in self._filters):
            raise PromptFilteredError

    def _encode(
        self, conversation: Conversation, images: Sequence[Image.Image], num_crops: Sequence[int]
    ) -> Prompt:
        crops = []
        # One after another: decoded, an image may take 200 MB.
        for image, most, (_, field) in zip(images, num_crops, conversation.images, strict=True):
            with naming(field):
                crops.append(self.model.preprocess(decode_image(image), most))
        try:
            return self.model.encode_prompt(conversation.text, crops)
        except PromptError as error:
            raise HttpResponseError(400, f"messages: {error}", param="messages") from None

    def _num_crops(self, conversation: Conversation, images: Sequence[Image.Image]) -> list[int]:
        """Most crops of each image."""
        default = self.model.manifest.model.num_crops
        details = [part.image_url.detail for part, _ in conversation.images]
        num_crops = [DETAIL_CROPS[detail] or default for detail in details]
        if self._max_ttft_ms is None:
            return num_crops
        text = conversation.text
        most = self.model.fit_crops(images, self._max_ttft_ms, text=text, num_crops=num_crops)
        return [min(most, own) for own in num_crops]

    def _least_text_tokens(self, request: ChatRequest) -> int:
        """A lower bound; see `longest_token`."""
        texts = [part for each in request.messages for part in each.parts if part.type == "text"]
        return sum(len(part.text.strip()) for part in texts) // self._longest_token

    def _check_context(
        self, request: ChatRequest, num_tokens: int, known: str = "at least "
    ) -> None:
        """Refuse a prompt of so many tokens, or "at least" so many, if the context is shorter."""
        context_length = self.model.manifest.model.context_length
        wanted = request.token_limit or 1
        if num_tokens + wanted > context_length:
            raise HttpResponseError(
                400,
                f"the prompt has {known}{num_tokens:,} tokens and {wanted:,} are asked for, "
                f"{num_tokens + wanted:,} together; this model's context holds "
                f"{context_length:,}: shorten the messages, lower an image's `detail`, or lower "
                "max_tokens",
                code="context_length_exceeded",
                param="messages" if num_tokens >= context_length else "max_tokens",
            )

    def _pieces(self, job: _Job) -> Iterator[tuple[int, Piece]]:
        """Pieces of all choices as they come, each with its choice's number; an empty one first."""
        request, generation = job.request, job.generation
        filters = [TextFilter(self._filters) for _ in range(request.n)]
        tools = request.tools if request.may_call_tool else []
        readers = [CallReader(tools) for _ in range(request.n)]
        is_started = False
        try:
            with generation, _naming_schema(job.schema_field):
                for event in generation:
                    if not is_started:  # the prompt is prefilled
                        is_started = True
                        yield from ((index, Piece()) for index in range(request.n))
                    piece = filters[event.index].add(self._piece(event))
                    if piece.finish_reason:
                        generation.finish(event.index)
                    yield from ((event.index, each) for each in readers[event.index].add(piece))
        except ContextLengthError as error:
            raise HttpResponseError(400, str(error), code="context_length_exceeded") from None

    def _piece(self, event: GenerationEvent) -> Piece:
        """An event as the API tells it; end tokens count, but have no log probabilities."""
        logprobs: tuple[TokenLogprob, ...] = ()
        ends = self.model.manifest.model.eos_token_ids
        if event.logprobs is not None and event.token_id not in ends:
            logprobs = (self._token_logprob(event.token_id, event.logprobs),)
        return Piece(event.text, None, logprobs, event.finish_reason)

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

    @staticmethod
    def _logprobs(request: ChatRequest, pieces: Sequence[Piece]) -> Logprobs | None:
        if not request.logprobs:
            return None
        return {"content": [entry for piece in pieces for entry in piece.logprobs]}


def _least_image_tokens(
    conversation: Conversation, images: Sequence[Image.Image], num_crops: Sequence[int]
) -> int:
    """Tokens of the images, lying or standing: their headers are known, and not all of EXIF."""
    num_tokens = 0
    for image, most, (_, field) in zip(images, num_crops, conversation.images, strict=True):
        with naming(field):
            height, width = padded_size(*image.size, most)
        num_tokens += min(count_tokens((height, width)), count_tokens((width, height)))
    return num_tokens


def _usage(usage: TokenUsage) -> Usage:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _schema(request: ChatRequest) -> tuple[dict[str, Any] | None, str]:
    """What the completion has to validate by, and the field that says so."""
    if request.must_call_tool:
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


@contextmanager
def _naming_schema(field: str) -> Iterator[None]:
    """Say of what is wrong with a schema which field it stands in."""
    try:
        yield
    except SchemaError as error:
        raise HttpResponseError(400, f"{field}: {error}", param=field) from None


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
