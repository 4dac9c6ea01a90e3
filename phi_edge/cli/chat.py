"""`phi-edge chat`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from phi_edge.generation.options import GenerationOptions
from phi_edge.image.crops import ImageCrops
from phi_edge.image.files import open_image
from phi_edge.loaded_model import Model
from phi_edge.text.prompt import chat_text, image_tags

from .options import (
    crops_option,
    generation_options,
    loading_options,
    model_option,
    ttft_option,
)


@click.command()
@click.argument("prompt", required=False)
@model_option
@click.option(
    "--image",
    "image_paths",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Image to talk about; may be repeated.",
)
@crops_option
@click.option("--system", help="System message.")
@generation_options
@ttft_option
@loading_options
def chat(
    *,
    prompt: str | None,
    model_path: Path | None,
    image_paths: tuple[Path, ...],
    num_crops: int | None,
    system: str | None,
    max_ttft_ms: float | None,
    load: Callable[[Path | None], Model],
    options: GenerationOptions,
) -> None:
    """Answer PROMPT; without one, hold a conversation until the end of input."""
    images = [open_image(path) for path in image_paths]
    if model_path is None and sys.stderr.isatty():
        click.echo("phi-edge-tiny, a test model; --model takes a package of your own", err=True)
    with load(model_path) as model:
        tags = image_tags(len(images))
        turns = [("system", system)] if system else []
        most = model.choose_crops(
            images,
            [num_crops] * len(images),
            text=chat_text([*turns, ("user", tags + (prompt or ""))]),
            max_tokens=options.max_tokens,
            max_ttft_ms=max_ttft_ms,
        )
        crops = list(map(model.preprocess, images, most))
        for question in [prompt] if prompt is not None else _ask():
            turns.append(("user", tags + question))
            tags = ""
            turns.append(("assistant", _answer(model, turns, crops, options)))


def _ask() -> Iterator[str]:
    """Read questions from the terminal, or from a pipe line by line."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            click.echo("> ", nl=False)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(
    model: Model,
    turns: Sequence[tuple[str, str]],
    crops: Sequence[ImageCrops],
    options: GenerationOptions,
) -> str:
    """Stream an answer to the terminal and give it back."""
    pieces = []
    prompt = model.encode_prompt(chat_text(turns), crops)
    for event in model.generate(prompt, options):
        pieces.append(event.text)
        click.echo(event.text, nl=False)
    click.echo()
    return "".join(pieces)
