"""Options that several commands have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from phi_edge.loading import ENGINES, load_model
from phi_edge.providers import AUTO
from phi_edge.session import PROVIDERS

Command = Callable[..., Any]

provider_option = click.option(
    "--provider",
    type=click.Choice([AUTO, *PROVIDERS]),
    default=AUTO,
    show_default=True,
    help="Execution provider; auto is what the package was built for, where that works.",
)
threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
model_option = click.option(
    "--model",
    "model_path",
    type=click.Path(path_type=Path),
    envvar="PHI_EDGE_MODEL",
    help="Package folder; the bundled phi-edge-tiny, a test model, when not given.",
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


def loading_options(command: Command) -> Command:
    """Give a command the options of how a package is loaded; it gets a function `load`."""

    @functools.wraps(command)
    def loading(
        *,
        provider: str,
        provider_options: dict[str, str],
        engine: str,
        threads: int | None,
        max_ram_mb: int | None,
        disk_cache: Path | None,
        **arguments: Any,
    ) -> Any:
        load = functools.partial(
            load_model,
            provider=provider,
            provider_options=provider_options,
            engine=engine,
            num_threads=threads,
            max_ram_mb=max_ram_mb,
            disk_cache=disk_cache,
        )
        return command(load=load, **arguments)

    result: Command = loading
    for option in reversed(_LOADING):
        result = option(result)
    return result
