"""Errors by the names that code for the cloud has for them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import azure.core.exceptions as azure
import pytest
from azure.ai.inference import ChatCompletionsClient as SdkClient
from azure.ai.inference.models import UserMessage
from azure.core.credentials import AzureKeyCredential

import phi_edge
from phi_edge import HttpResponseError
from phi_edge.api.safety import BlockList, PromptFilteredError
from phi_edge.api.service import ChatService
from phi_edge.transports.azure import LocalTransport

CLASSES = {
    400: azure.HttpResponseError,
    401: azure.ClientAuthenticationError,
    404: azure.ResourceNotFoundError,
    409: azure.ResourceExistsError,
    500: azure.HttpResponseError,
}
WITHOUT_AZURE = """
import sys
from phi_edge import HttpResponseError
error = HttpResponseError(404, "there is no such thing")
assert not any(name.partition(".")[0] == "azure" for name in sys.modules)
assert type(error) is HttpResponseError
import azure.core.exceptions
assert isinstance(HttpResponseError(404, "none"), azure.core.exceptions.ResourceNotFoundError)
print(repr(str(error)), error.status_code, error.reason, error.error.code)
"""


@pytest.mark.parametrize("status_code", CLASSES)
def test_the_class_of_an_error(status_code: int) -> None:
    with pytest.raises(CLASSES[status_code]) as caught:
        raise HttpResponseError(status_code, "that is wrong", param="messages")
    error = caught.value
    assert isinstance(error, HttpResponseError)
    assert isinstance(error, phi_edge.PhiEdgeError)
    assert type(error).__name__ == "HttpResponseError"
    assert error.status_code == status_code
    assert error.response is not None
    assert error.response.status_code == status_code
    assert type(error) is type(HttpResponseError(status_code, "it is made once"))


def test_azure_core_is_not_imported_before_somebody_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_AZURE],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = "(not_found) there is no such thing\\nCode: not_found\\nMessage: there is no such thing"
    assert done.stdout.strip() == f"'{said}' 404 Not Found not_found"


def test_an_error_says_what_the_sdk_says(service: ChatService) -> None:
    """The same request, to the real SDK and to the client here."""
    filtered = ChatService(service.model, content_filters=[BlockList(["knife"])])
    theirs = SdkClient(
        endpoint="https://local",
        credential=AzureKeyCredential("none"),
        transport=LocalTransport(filtered),
    )
    messages: list[Any] = [UserMessage("Sharpen the knife.")]
    with pytest.raises(azure.HttpResponseError) as expected:
        theirs.complete(messages=messages)
    with pytest.raises(azure.HttpResponseError) as found:
        phi_edge.ChatCompletionsClient(filtered).complete(messages=messages)
    error, other = found.value, expected.value
    assert str(error) == str(other)
    assert error.message == other.message
    assert error.status_code == other.status_code
    assert error.reason == other.reason
    assert error.error is not None
    assert other.error is not None
    for name in ("code", "message", "target", "innererror"):
        assert getattr(error.error, name) == getattr(other.error, name), name
    assert list(error.error.details) == list(other.error.details)
    assert error.error.message_details() == other.error.message_details()
    assert error.response is not None
    assert other.response is not None
    assert error.response.text() == other.response.text()
    assert error.response.json() == other.response.json()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error",
    [
        HttpResponseError(422, "no", code="odd", param="n", detail=[1], headers={"allow": "GET"}),
        PromptFilteredError(),
        phi_edge.ContextLengthError(5000, 4096),
        phi_edge.ImageError("no image"),
    ],
)
def test_errors_are_pickled(error: phi_edge.PhiEdgeError) -> None:
    """Other processes get them whole."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    assert isinstance(copy, HttpResponseError) == isinstance(error, HttpResponseError)
    assert isinstance(copy, phi_edge.PhiEdgeError)
    assert str(copy) == str(error)
    hidden = {"exc_traceback", "response"}
    kept = {name: value for name, value in vars(error).items() if name not in hidden}
    assert {name: value for name, value in vars(copy).items() if name not in hidden} == kept
