"""The error tree.

PhiEdgeError
  x PackageError (ValueError)            a package folder that cannot be used
    - PackageNotFoundError (FileNotFoundError)
  x SamplesError (ValueError)            a folder of samples that cannot be read
  x CheckpointError (ValueError)         a checkpoint that cannot be exported
    - CheckpointNotFoundError (FileNotFoundError)
  x ProviderError (RuntimeError)         ONNX Runtime or an execution provider is not usable
  x ImageError (ValueError)              an image that cannot be read or laid out
  x PromptError (ValueError)             a prompt whose tags, tokens and images do not fit
  x ContextLengthError (ValueError)      more tokens than the model's context holds
  x MemoryLimitError (MemoryError)       more memory than `max_ram_mb` would be needed
  x CalibrationError (RuntimeError)      predictions of time need a calibration of this machine
  x GenerationCancelled                  the caller asked for the run to stop
  x EngineError (RuntimeError)           the engine failed while running a graph
    - OutOfMemoryError (MemoryError)     the machine has not the memory that a run needs
  x HttpResponseError                    a request that the API answers with an error

Each subclasses the built-in that it refines, so that callers who do not know this
package catch what they expect.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any


def shorten(text: str, num_characters: int) -> str:
    """Show the beginning of a text that somebody else chose."""
    return text if len(text) <= num_characters else f"{text[:num_characters]}..."


class PhiEdgeError(Exception):
    """Base of every error that this package raises on purpose."""


class PackageError(PhiEdgeError, ValueError):
    """A package folder is damaged, changed, or of a format that this version cannot read."""


class PackageNotFoundError(PackageError, FileNotFoundError):
    """There is no package at the given path."""


class SamplesError(PhiEdgeError, ValueError):
    """A folder of samples is missing or empty, or a line in it is no sample."""


class CheckpointError(PhiEdgeError, ValueError):
    """A checkpoint is incomplete, of another architecture, or stored in a refused form."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at the given path or hub name."""


class ProviderError(PhiEdgeError, RuntimeError):
    """ONNX Runtime, or the execution provider asked for, is not usable here."""


class ImageError(PhiEdgeError, ValueError):
    """An image cannot be decoded or has a shape that the model cannot take."""


class PromptError(PhiEdgeError, ValueError):
    """Image tags, images and token ids of a prompt do not fit together."""


class ContextLengthError(PhiEdgeError, ValueError):
    """A sequence would be longer than the model's context.

    Attributes:
        num_tokens: Tokens that the sequence would have.
        context_length: Tokens that the model can take.
    """

    def __init__(self, num_tokens: int, context_length: int) -> None:
        super().__init__(
            f"the sequence would be {num_tokens:,} tokens long, and this model's context holds "
            f"{context_length:,}: shorten the prompt, use fewer crops, or ask for fewer tokens"
        )
        self.num_tokens = num_tokens
        self.context_length = context_length


class MemoryLimitError(PhiEdgeError, MemoryError):
    """A package or a request would take more memory than the caller allowed."""


class CalibrationError(PhiEdgeError, RuntimeError):
    """How fast the package runs on this machine was not measured yet."""


class GenerationCancelled(PhiEdgeError):  # noqa: N818 - an outcome the caller asked for
    """The run was stopped through its cancel event."""


class EngineError(PhiEdgeError, RuntimeError):
    """ONNX Runtime failed while loading or running a graph."""


class OutOfMemoryError(EngineError, MemoryError):
    """The machine has not the memory that a run needs. What ran before can go on."""


class HttpResponseError(PhiEdgeError):
    """A request to the chat completions API was answered with an error.

    Has the attributes that callers of `azure.core.exceptions.HttpResponseError` use.

    Attributes:
        status_code: HTTP status, 400 or above.
        message: What was wrong and what to do.
        code: The error's name, for example "content_filter".
        param: The request's field that is to blame, or None.
        headers: Headers that go with the answer.
    """

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        detail: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.message = message
        self.code = code or HTTPStatus(status_code).phrase.lower().replace(" ", "_")
        self.param = param
        self.detail = detail
        self.headers = dict(headers or {})

    @property
    def reason(self) -> str:
        """The status in words."""
        return HTTPStatus(self.status_code).phrase

    @property
    def body(self) -> dict[str, object]:
        """The error as the API's JSON."""
        error: dict[str, object] = {
            "message": self.message,
            "type": None,
            "param": self.param,
            "code": self.code,
            "status": self.status_code,
        }
        return {"error": error} if self.detail is None else {"error": error, "detail": self.detail}

    @property
    def response(self) -> ErrorResponse:
        """The answer as an HTTP client shows it."""
        headers = {"content-type": "application/json", **self.headers}
        return ErrorResponse(self.status_code, self.reason, headers, self.body)


@dataclasses.dataclass(frozen=True)
class ErrorResponse:
    """What an HTTP client would have received with an `HttpResponseError`."""

    status_code: int
    reason: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    def json(self) -> Any:
        """Give the body."""
        return self.body

    def text(self) -> str:
        """Give the body as it would be sent."""
        return json.dumps(self.body)
