"""Options that several commands have."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from phi_edge.engine.probe import AUTO
from phi_edge.engine.providers import PROVIDERS
from phi_edge.generation.options import GenerationOptions, SharedOptions
from phi_edge.loading import ENGINES, LoadOptions, find_package, load_model

Command = Callable[..., Any]

provider_option = click.option(
    "--provider",
    type=click.Choice([AUTO, *PROVIDERS]),
    default=AUTO,
    show_default=True,
    help="Execution provider; auto is what the package was built for, where that works.",
)
threads_option = click.option(
    "--threads", "num_threads", type=click.IntRange(min=1), help="CPU threads."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
model_option = click.option(
    "--model",
    "model_path",
    type=click.Path(path_type=Path),
    envvar="PHI_EDGE_MODEL",
    help="Package folder, or a model's name; the bundled phi-edge-tiny, a test model, without it.",
)
crops_option = click.option(
    "--num-crops",
    type=click.IntRange(min=1),
    help="Most crops an image; by its size when not given.",
)
ttft_option = click.option(
    "--max-ttft-ms",
    type=click.FloatRange(min=0),
    help="Use fewer crops, until the first token is predicted to come within so many "
    "milliseconds. Needs `phi-edge calibrate`, once.",
)


def _parse_pairs(
    _context: click.Context, _parameter: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, str]:
    """NAME=VALUE, several times, as a dictionary."""
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


_LOADING = (
    provider_option,
    click.option(
        "--provider-option",
        "provider_options",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_parse_pairs,
        help="Option of the provider, such as device_id or gpu_mem_limit; may be repeated.",
    ),
    click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default=ENGINES[0],
        show_default=True,
        help="What runs the graphs.",
    ),
    threads_option,
    click.option(
        "--max-ram-mb",
        type=click.IntRange(min=1),
        envvar="PHI_EDGE_MAX_RAM_MB",
        help="Refuse what is predicted to take more memory.",
    ),
    click.option(
        "--disk-cache",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder to keep image features and prefilled prompts in between runs, up to 8 GiB. "
        "Its files tell what images and prompts say, and only you can read them.",
    ),
)


def package_argument(command: Command) -> Command:
    """Give a command the folder of a package, named as an argument or, as elsewhere, by `--model`.

    It gets `model_path`.
    """

    @functools.wraps(command)
    def finding(*, package: Path | None, model: Path | None, **arguments: Any) -> Any:
        if package and model:
            raise click.UsageError("give PACKAGE or --model, not both")
        folder = find_package(package or model, arguments.get("provider", AUTO))
        return command(model_path=folder, **arguments)

    path = click.Path(path_type=Path)
    names = (
        click.argument("package", metavar="[PACKAGE]", type=path, required=False),
        click.option("--model", type=path, help="The same as PACKAGE."),
    )
    return _with_options(finding, names)


def loading_options(command: Command) -> Command:
    """Give a command the options of how a package is loaded; it gets a function `load`."""

    @functools.wraps(command)
    def loading(**arguments: Any) -> Any:
        names = LoadOptions.__optional_keys__ & arguments.keys()
        settings = {name: arguments.pop(name) for name in names}
        return command(load=functools.partial(load_model, **settings), **arguments)

    return _with_options(loading, _LOADING)


def generation_options(command: Command) -> Command:
    """Give a command the options of how text is generated; it gets `options`."""

    @functools.wraps(command)
    def generating(
        *, stop: tuple[str, ...], json_schema: dict[str, Any] | None, **arguments: Any
    ) -> Any:
        fields = {name: arguments.pop(name) for name in SharedOptions.model_fields}
        try:
            options = GenerationOptions(**fields, stop=stop, json_schema=json_schema)
        except ValueError as error:
            name, _, problem = str(error).partition(":")
            raise click.UsageError(f"--{name.replace('_', '-')}:{problem}") from None
        return command(options=options, **arguments)

    shared = map(_shared_option, SharedOptions.model_fields)
    return _with_options(generating, [*shared, *_TEXT_OPTIONS])


def _with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """Give a command options, which help lists in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def _shared_option(name: str) -> Callable[[Command], Command]:
    """Make an option of a field of `SharedOptions`, which checks its range."""
    field = SharedOptions.model_fields[name]
    default = _CHAT_DEFAULTS.get(name, field.default)
    kind, *_ = get_args(field.annotation) or (field.annotation,)
    return click.option(
        f"--{name.replace('_', '-')}",
        type=kind,
        default=default,
        show_default=default is not None,
        help=field.description,
    )


def _read_schema(
    _context: click.Context, _parameter: click.Parameter, path: Path | None
) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise click.BadParameter(f"{path} is no JSON file: {error}") from None
    if not isinstance(schema, dict):
        raise click.BadParameter(f"{path} holds no JSON object")
    return schema


# An answer that goes on without end would fill the whole context.
_CHAT_DEFAULTS = {"max_tokens": 1024}
_TEXT_OPTIONS = (
    click.option("--stop", multiple=True, help="Text that ends an answer; may be repeated."),
    click.option(
        "--json-schema",
        type=click.Path(path_type=Path),
        callback=_read_schema,
        help="File with a JSON schema that answers have to fit.",
    ),
)
