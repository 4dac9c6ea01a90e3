"""The core: a chat completions request in, an answer or an iterator of chunks out."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence

from typing_extensions import TypedDict

from phi_edge.errors import ContextLengthError, HttpResponseError
from phi_edge.loaded_model import Model

from .answer import make_chunks, make_completion, make_piece
from .conversation import ImagePolicy, SystemRole
from .pieces import CallReader, Piece, TextFilter
from .prepare import Job, Preparer, naming_schema
from .request import ChatRequest
from .response import Chunk, Completion, ModelDescription
from .safety import ContentFilter


class ServiceOptions(TypedDict, total=False):
    """Arguments of `ChatService`, as keywords of what makes one."""

    image_policy: ImagePolicy
    system_role: SystemRole
    content_filters: Sequence[ContentFilter]
    allowed_image_hosts: Collection[str]
    num_crops: int | None
    max_ttft_ms: float | None


class ChatService:
    """Answers chat completions requests with a model.

    Requests may come from several threads; each has a key/value cache of its own.

    Attributes:
        model: The model.
    """

    def __init__(
        self,
        model: Model,
        *,
        image_policy: ImagePolicy = "last",
        system_role: SystemRole = "user",
        content_filters: Sequence[ContentFilter] = (),
        allowed_image_hosts: Collection[str] = (),
        num_crops: int | None = None,
        max_ttft_ms: float | None = None,
    ) -> None:
        """Set up the service.

        Args:
            model: From `load_model`; it stays the caller's to close.
            image_policy: How many images a conversation has; see `make_conversation`.
            system_role: What system messages become; see there.
            content_filters: Checked on every prompt and completion.
            allowed_image_hosts: Hosts from which image URLs may be fetched.
            num_crops: Most sub crops of an image whose `detail` is "auto"; by the image's size
                when None (see `phi_edge.image.crops.auto_crops`).
            max_ttft_ms: Gives images fewer crops than their `detail` says, until the first token
                is predicted to come within so many milliseconds; see `Model.fit_crops`.

        Raises:
            ValueError: `num_crops` is below 1.
            CalibrationError: `max_ttft_ms` is given, and the machine was not calibrated.
        """
        if num_crops is not None and num_crops < 1:
            raise ValueError(f"num_crops: it is at least 1, not {num_crops}")
        if max_ttft_ms is not None:
            model.speed_profile  # noqa: B018 - rather here than at the first request
        self.model = model
        filters, hosts = tuple(content_filters), frozenset(allowed_image_hosts)
        self._preparer = Preparer(
            model, image_policy, system_role, filters, hosts, num_crops, max_ttft_ms
        )

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self.info()["model_name"]

    def info(self) -> ModelDescription:
        """Tell what the model is, as `/info` does."""
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
        job = self._preparer.prepare(request, cancel)
        return make_completion(self.model_name, request, self._pieces(job), job.generation)

    def stream(
        self, request: ChatRequest, cancel: threading.Event | None = None
    ) -> Iterator[Chunk]:
        """Answer a request chunk by chunk; see `complete`.

        What is wrong with the request is raised here, before the first chunk. Closing the
        iterator ends the work.
        """
        job = self._preparer.prepare(request, cancel)
        return make_chunks(self.model_name, request, self._pieces(job), job.generation)

    def _pieces(self, job: Job) -> Iterator[tuple[int, Piece]]:
        """Make the pieces of all choices, each with its choice's number, first an empty one."""
        request, generation = job.request, job.generation
        tokenizer, ends = self.model.tokenizer, self.model.manifest.model.eos_token_ids
        filters = [TextFilter(self._preparer.content_filters) for _ in range(request.n)]
        readers = [CallReader(request) for _ in range(request.n)]
        is_started = False
        try:
            with generation, naming_schema(job.schema_field):
                for event in generation:
                    if not is_started:  # the prompt is prefilled
                        is_started = True
                        yield from ((index, Piece()) for index in range(request.n))
                    piece = filters[event.index].add(make_piece(tokenizer, ends, event))
                    if piece.finish_reason:
                        generation.finish(event.index)
                    yield from ((event.index, each) for each in readers[event.index].add(piece))
        except ContextLengthError as error:
            raise HttpResponseError(400, str(error), code="context_length_exceeded") from None
