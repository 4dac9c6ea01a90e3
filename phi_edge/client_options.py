"""What a client and its methods take, and the request that is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from typing_extensions import TypedDict

from phi_edge.api.http import read_json
from phi_edge.api.parse import parse_request, read_extra_parameters
from phi_edge.api.request import ChatRequest
from phi_edge.api.service import ChatService, ServiceOptions
from phi_edge.errors import HttpResponseError
from phi_edge.json_object import to_json
from phi_edge.loaded_model import Model
from phi_edge.loading import LoadOptions
from phi_edge.models import (
    ChatCompletionsNamedToolChoice,
    ChatCompletionsToolChoicePreset,
    ChatCompletionsToolDefinition,
    ChatRequestMessage,
    JsonSchemaFormat,
)

Body = Mapping[str, Any] | IO[bytes] | bytes | bytearray
Messages = Sequence[ChatRequestMessage | Mapping[str, Any]]
ResponseFormat = Literal["text", "json_object"] | JsonSchemaFormat | Mapping[str, Any]
ToolChoice = str | ChatCompletionsToolChoicePreset | ChatCompletionsNamedToolChoice
Tools = Sequence[ChatCompletionsToolDefinition | Mapping[str, Any]]
# A package folder, a model's name, a URL, which stands for the default, or what is loaded already.
ModelSource = str | Path | Model | ChatService


class TransportOptions(TypedDict, total=False):
    """Arguments of the Azure SDK that are about the connection to a service.

    There is no connection here, so they are accepted and have no effect. One header has:
    `extra-parameters`, as the service reads it. Source: the keywords that the policies and
    transports of azure-core 1.41 read.
    """

    api_version: str
    authentication_policy: Any
    auto_request_id: bool
    base_headers: Mapping[str, str]
    base_user_agent: str
    cls: Any
    connection_cert: Any
    connection_data_block_size: int
    connection_timeout: float
    connection_verify: bool | str
    content_type: str
    credential_scopes: Sequence[str]
    custom_hook_policy: Any
    enable_cae: bool
    enforce_https: bool
    error_map: Mapping[int, Any]
    headers: Mapping[str, str]
    headers_policy: Any
    http_logging_level: int
    http_logging_policy: Any
    logger: Any
    logging_body: bool
    logging_enable: bool
    logging_policy: Any
    merge_span: bool
    network_span_namer: Any
    params: Mapping[str, Any]
    parent_span: Any
    per_call_policies: Any
    per_retry_policies: Any
    permit_redirects: bool
    pipeline: Any
    policies: Any
    polling_interval: float
    proxies: Mapping[str, str]
    proxy_policy: Any
    raw_request_hook: Any
    raw_response_hook: Any
    read_timeout: float
    redirect_max: int
    redirect_on_status_codes: Any
    redirect_policy: Any
    redirect_remove_headers: Any
    request_id: str
    response_encoding: str
    retry_backoff_factor: float
    retry_backoff_max: float
    retry_connect: int
    retry_mode: Any
    retry_on_methods: Any
    retry_on_status_codes: Any
    retry_policy: Any
    retry_read: int
    retry_status: int
    retry_total: int
    sdk_moniker: str
    session: Any
    session_owner: bool
    timeout: float
    tracing_attributes: Any
    tracing_options: Any
    transport: Any
    use_env_settings: bool
    user_agent: str
    user_agent_overwrite: bool
    user_agent_policy: Any
    user_agent_use_env: bool


class CompleteDefaults(TypedDict, total=False):
    """Arguments of `complete` that a client may have for all calls.

    `model_extras` holds what the Azure AI model inference API does not define, such as `logprobs`
    or `top_k`.
    """

    frequency_penalty: float | None
    presence_penalty: float | None
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    response_format: ResponseFormat | None
    stop: str | Sequence[str] | None
    tools: Tools | None
    tool_choice: ToolChoice | None
    seed: int | None
    model_extras: Mapping[str, Any] | None


class CompleteArguments(CompleteDefaults, TransportOptions, total=False):
    """Arguments of `complete` besides the body and `stream`."""

    messages: Messages
    model: str | None


class ClientOptions(LoadOptions, ServiceOptions, CompleteDefaults, TransportOptions, total=False):
    """Arguments of a client besides the endpoint and the credential.

    They are those of `load_model`, `ChatService`, and `complete`. `model` is what requests call the
    model; without an endpoint, it takes its place.
    """

    model: ModelSource | None


_TRANSPORT = TransportOptions.__optional_keys__
_REQUEST = CompleteArguments.__optional_keys__ - _TRANSPORT


class ClientSettings(NamedTuple):
    """A client's options, by what takes them: `load_model`, `ChatService` and `complete`.

    The headers are those of every request.
    """

    source: ModelSource | None
    loading: LoadOptions
    serving: ServiceOptions
    defaults: Mapping[str, Any]
    headers: Mapping[str, str]


def read_settings(endpoint: ModelSource | None, options: Mapping[str, Any]) -> ClientSettings:
    """Split a client's options.

    Raises:
        TypeError: One is unknown, or comes too late for a model that is loaded already.
    """
    loading = {name: options[name] for name in LoadOptions.__optional_keys__ & options.keys()}
    serving = {name: options[name] for name in ServiceOptions.__optional_keys__ & options.keys()}
    rest = options.keys() - loading.keys() - serving.keys() - _TRANSPORT
    _check_names("the client", rest, _REQUEST - {"messages"})
    defaults = {name: options[name] for name in rest if options[name] is not None}
    source = defaults.pop("model", None) if endpoint is None else endpoint
    late = dict(loading if isinstance(source, Model | ChatService) else {})
    late |= serving if isinstance(source, ChatService) else {}
    if late:
        raise TypeError(f"the model is loaded already, without {', '.join(sorted(late))}")
    headers = options.get("headers") or {}
    return ClientSettings(source, loading, serving, defaults, headers)  # type: ignore[arg-type]


def make_request(
    body: Body | None,
    arguments: Mapping[str, Any],
    settings: ClientSettings,
    *,
    stream: bool | None,
) -> ChatRequest:
    """Make the request that `complete` is asked for.

    Raises:
        HttpResponseError: 400 or 422; see `parse_request`.
        TypeError: There is no such argument, or neither a body nor messages.
    """
    _check_names("complete", arguments.keys() - _TRANSPORT, _REQUEST)
    given = {
        name: arguments[name] for name in arguments.keys() & _REQUEST if arguments[name] is not None
    }
    if body is None:
        fields: Any = _fields_of_keywords(given, settings.defaults)
    elif given:
        raise TypeError("complete takes a body or keywords, not both")
    else:
        fields = _fields_of_body(body)
    if stream is not None and isinstance(fields, Mapping):
        fields = {**fields, "stream": stream}
    try:
        fields = to_json(fields)
    except RecursionError:
        raise HttpResponseError(400, "the request is nested too deep") from None
    headers = {**settings.headers, **(arguments.get("headers") or {})}
    headers = {name.lower(): value for name, value in headers.items()}
    return parse_request(fields, read_extra_parameters(headers, "pass-through"))


def _fields_of_keywords(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    if "messages" not in given:
        raise TypeError("missing required argument: messages, or a body")
    fields = {**defaults, **given}
    extras = given.get("model_extras") or defaults.get("model_extras") or {}
    fields.pop("model_extras", None)
    response_format = fields.get("response_format")
    if isinstance(response_format, str):
        fields["response_format"] = {"type": response_format}
    elif isinstance(response_format, Mapping) and "type" not in response_format:
        fields["response_format"] = {"type": "json_schema", "json_schema": response_format}
    return {**fields, **extras}


def _fields_of_body(body: Body) -> object:
    if isinstance(body, Mapping):
        return body
    if hasattr(body, "read"):
        body = body.read()
    if not isinstance(body, bytes | bytearray):
        raise TypeError("a body is a mapping, bytes or a binary file; messages=[...] is a keyword")
    return read_json(bytes(body))


def _check_names(owner: str, names: Iterable[str], known: frozenset[str]) -> None:
    if unknown := set(names) - known:
        raise TypeError(
            f"{owner} has no argument {', '.join(sorted(unknown))}; what the Azure AI model "
            "inference API does not define goes into model_extras"
        )
