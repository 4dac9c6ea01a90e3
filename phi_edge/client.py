"""The client: `azure.ai.inference.ChatCompletionsClient`'s interface on a model of this machine."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Literal, overload

from typing_extensions import Self, Unpack

from phi_edge.api.service import ChatService
from phi_edge.cancel import CancelToken
from phi_edge.client_options import (
    Body,
    ClientOptions,
    CompleteArguments,
    ModelSource,
    TransportOptions,
    make_request,
    read_settings,
)
from phi_edge.engine.probe import AUTO
from phi_edge.loaded_model import Model
from phi_edge.loading import BUNDLED_MODEL, LoadOptions, find_package, load_model
from phi_edge.models import ChatCompletions, ModelInfo, StreamingChatCompletions

logger = logging.getLogger(__name__)


class ChatCompletionsClient:
    """Chat completions from a model of this machine.

    Attributes:
        service: What answers.
    """

    def __init__(
        self,
        endpoint: ModelSource | None = None,
        credential: object = None,  # noqa: ARG002 - code for the cloud gives one
        **options: Unpack[ClientOptions],
    ) -> None:
        """Load a model, or take one that is loaded.

        Args:
            endpoint: A package folder or a model's name (see `find_package`), a loaded model, or a
                service. A URL of http(s) is never contacted: it stands for the default package, as
                None does. What is loaded here is closed with the client.
            credential: Anything; it is not used.
            options: See `ClientOptions`.

        Raises:
            TypeError: There is no such argument, or it comes too late for a loaded model.
            PackageError, ProviderError, EngineError: See `load_model`.
        """
        self._settings = read_settings(endpoint, options)
        self._owned: Model | None = None
        source = self._settings.source
        if isinstance(source, ChatService):
            self.service = source
            return
        if not isinstance(source, Model):
            source = self._owned = _load(source, self._settings.loading)
        try:
            self.service = ChatService(source, **self._settings.serving)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the model, if the client loaded it."""
        if self._owned is not None:
            self._owned.close()

    def get_model_info(self, **_options: Unpack[TransportOptions]) -> ModelInfo:
        """Tell what the model is."""
        return ModelInfo(**self.service.info())

    @overload
    def complete(
        self,
        body: Body | None = None,
        *,
        stream: Literal[False] | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions: ...

    @overload
    def complete(
        self,
        body: Body | None = None,
        *,
        stream: Literal[True],
        **arguments: Unpack[CompleteArguments],
    ) -> StreamingChatCompletions: ...

    @overload
    def complete(
        self,
        body: Body | None = None,
        *,
        stream: bool | None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions | StreamingChatCompletions: ...

    def complete(
        self,
        body: Body | None = None,
        *,
        stream: bool | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> ChatCompletions | StreamingChatCompletions:
        """Answer a conversation.

        Args:
            body: The whole request as the API's JSON, instead of the keywords: a mapping, bytes,
                or a binary file.
            stream: Give the answer in chunks, as they come.
            arguments: Fields of the request; see `CompleteArguments`.

        Returns:
            The answer, or its chunks with `stream=True`.

        Raises:
            HttpResponseError: The request cannot be answered; it says why.
            TypeError: There is no such argument, or neither a body nor messages.
        """
        return self.answer(body, arguments, stream=stream, cancel=CancelToken())

    def answer(
        self,
        body: Body | None,
        arguments: CompleteArguments,
        *,
        stream: bool | None,
        cancel: threading.Event,
    ) -> ChatCompletions | StreamingChatCompletions:
        """Answer as `complete` does; setting `cancel`, from another thread, stops the work."""
        request = make_request(body, arguments, self._settings, stream=stream)
        if request.stream:
            return StreamingChatCompletions(self.service.stream(request, cancel), cancel)
        return ChatCompletions(dict(self.service.complete(request, cancel)))


def _load(source: str | Path | None, options: LoadOptions) -> Model:
    is_url = str(source).lower().startswith(("http://", "https://"))
    folder = find_package(None if is_url else source, options.get("provider", AUTO))
    model = load_model(folder, **options)
    note = "; the endpoint is never contacted" if is_url else ""
    logger.info("%s in %s answers%s", model.manifest.name, folder, note)
    if is_url and folder == BUNDLED_MODEL:
        logger.warning("phi-edge-tiny is a test model: PHI_EDGE_MODEL names a package of your own")
    return model


def load_client(
    endpoint: ModelSource | None = None,
    credential: object = None,
    **options: Unpack[ClientOptions],
) -> ChatCompletionsClient:
    """Make the client for a model; there is one kind. See `ChatCompletionsClient`."""
    return ChatCompletionsClient(endpoint, credential, **options)
