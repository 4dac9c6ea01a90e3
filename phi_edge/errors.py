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
import functools
import json
import sys
from collections.abc import Mapping, Sequence
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of, in the place of the message."""
        return type(self), (self.num_tokens, self.context_length)


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


@dataclasses.dataclass(frozen=True)
class ErrorDetail:
    """What an `HttpResponseError` says, with the names of `azure.core.exceptions.ODataV4Format`."""

    code: str
    message: str
    target: str | None = None
    details: Sequence[ErrorDetail] = ()
    innererror: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def message_details(self) -> str:
        """Write the code and the message, a line each."""
        return f"Code: {self.code}\nMessage: {self.message}"

    def __str__(self) -> str:
        return f"({self.code}) {self.message}\n{self.message_details()}"


@dataclasses.dataclass(frozen=True)
class ErrorResponse:
    """What an HTTP client would have received with an `HttpResponseError`."""

    status_code: int
    reason: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def content(self) -> bytes:
        """The body as it would be sent."""
        return json.dumps(self.body).encode()

    def json(self) -> Any:
        """Give the body."""
        return self.body

    def text(self) -> str:
        """Give the body as text."""
        return self.content.decode()


class HttpResponseError(PhiEdgeError):
    """A request to the chat completions API was answered with an error.

    Has the attributes of `azure.core.exceptions.HttpResponseError`. Once a program has imported
    azure-core, errors are of its class too, so that what was written to catch these does.

    Attributes:
        status_code: HTTP status, 400 or above.
        reason: The status in words.
        code: The error's name, for example "content_filter".
        param: The request's field that is to blame, or None.
        headers: Headers that go with the answer.
        body: The error as the API's JSON.
        error: The code, and what was wrong and what to do in plain words.
        message: Both, as azure-core writes them.
        response: The answer as an HTTP client shows it.
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
        """Take the status and, in plain words, what was wrong and what to do."""
        self.__class__ = _azure_class(type(self), status_code)
        reason = HTTPStatus(status_code).phrase
        code = code or reason.lower().replace(" ", "_")
        error = ErrorDetail(code, message)
        super().__init__(str(error))  # azure-core's sets attributes too, some of them to None
        self.error = error
        self.message = str(error)
        self.status_code = status_code
        self.reason = reason
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        said = {
            "message": message,
            "type": None,
            "param": param,
            "code": code,
            "status": status_code,
        }
        self.body: dict[str, Any] = {"error": said}
        if detail is not None:
            self.body["detail"] = detail
        sent = {"content-type": "application/json", **self.headers}
        self.response = ErrorResponse(status_code, reason, sent, self.body)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of: the other process may have imported azure-core, or not."""
        make = functools.partial(
            HttpResponseError,
            code=self.code,
            param=self.param,
            detail=self.body.get("detail"),
            headers=self.headers,
        )
        return make, (self.status_code, self.error.message)


def _azure_class(own: type[HttpResponseError], status_code: int) -> type[HttpResponseError]:
    """Find the class of an error with a status: one that is azure-core's too, if that is there.

    azure-core is not imported here: a program that catches its errors has done so.
    """
    azure = sys.modules.get("azure.core.exceptions")
    # As the methods of `azure.ai.inference` map them.
    names = {
        401: "ClientAuthenticationError",
        404: "ResourceNotFoundError",
        409: "ResourceExistsError",
    }
    theirs = getattr(azure, names.get(status_code, "HttpResponseError"), None)
    # mypy looks for `__hash__` of the class in the class itself.
    return own if theirs is None else _join(own, theirs)  # type: ignore[arg-type]


@functools.cache
def _join(own: type[Exception], theirs: type[Exception]) -> type[Any]:
    names = {"__module__": own.__module__, "__doc__": own.__doc__}
    return type(own.__name__, (own, theirs), names)
