"""`phi-edge serve`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from phi_edge.loaded_model import Model

from .options import crops_option, loading_options, model_option, ttft_option


@click.command()
@model_option
@crops_option
@ttft_option
@loading_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--api-key", envvar="PHI_EDGE_API_KEY", help="Key that clients have to send.")
@click.option(
    "--queue",
    "max_waiting",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Requests that may wait; more are refused.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    envvar="PHI_EDGE_TIMEOUT",
    default=3600,
    show_default=True,
    help="Seconds for a request, from its arrival to the end of its answer.",
)
@click.option(
    "--image-policy",
    type=click.Choice(["last", "all"]),
    default="last",
    show_default=True,
    help="Keep the conversation's last image, one a message; or all of them.",
)
@click.option(
    "--system-role",
    type=click.Choice(["user", "system"]),
    default="user",
    show_default=True,
    help="What system messages become.",
)
@click.option(
    "--allow-image-host",
    "allowed_image_hosts",
    multiple=True,
    help="Host from which image URLs may be fetched; may be repeated.",
)
@click.option(
    "--block-list",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of words and phrases, one a line, that no prompt or answer may have.",
)
def serve(
    *,
    model_path: Path | None,
    load: Callable[[Path | None], Model],
    host: str,
    port: int,
    api_key: str | None,
    max_waiting: int,
    timeout: float,
    block_list: Path | None,
    **settings: Any,
) -> None:
    """Serve the chat completions API, in Azure's shape and in OpenAI's."""
    try:
        from phi_edge.server.run import serve as run_server
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"serving needs {error.name}: run `pip install 'phi-edge[server]'`"
        ) from None
    from phi_edge.api.safety import BlockList
    from phi_edge.api.service import ChatService

    terms = block_list.read_text(encoding="utf-8").splitlines() if block_list else []
    filters = [BlockList(term for term in terms if term.strip())] if block_list else []
    logging.getLogger().setLevel(min(logging.INFO, logging.getLogger().level))
    with load(model_path) as model:
        service = ChatService(model, content_filters=filters, **settings)
        run_server(
            service,
            host=host,
            port=port,
            api_key=api_key,
            max_waiting=max_waiting,
            timeout=timeout,
        )
