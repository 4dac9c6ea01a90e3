"""Commands about speed and memory on this machine: `estimate`, `calibrate`, `bench`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from phi_edge import package
from phi_edge.engine.probe import resolve_provider
from phi_edge.image.files import read_size

from .options import json_option, package_argument, provider_option, threads_option
from .show import show, show_facts

# Lengths that a profile is fitted to, and tokens that are decoded after each.
_PROFILE_LENGTHS, _NUM_DECODED = (256, 1280), 16


@click.command()
@package_argument
@json_option
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    required=True,
    help="Tokens of the request's text.",
)
@click.option(
    "--image",
    "image_paths",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Image of the request, which counts by its size; may be repeated.",
)
@click.option(
    "--images",
    "num_images",
    type=click.IntRange(min=0),
    default=0,
    help="The number of its images, where no files are at hand: large and square ones.",
)
@click.option("--detail", type=click.Choice(["low", "auto", "high"]), help="Their detail.")
@click.option("--num-crops", type=click.IntRange(min=1), help="Their crops, instead of a detail.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Tokens of the completion.",
)
@provider_option
@threads_option
def estimate(
    *,
    model_path: Path,
    as_json: bool,
    prompt_tokens: int,
    provider: str,
    image_paths: tuple[Path, ...],
    **request: Any,
) -> None:
    """Predict the memory and the time that a request to PACKAGE takes."""
    from phi_edge.planning.estimate import estimate

    manifest = package.read_package(model_path)
    package.check_package(model_path, manifest)
    resolved = resolve_provider(provider, manifest.provider)
    sizes = [read_size(path) for path in image_paths]
    facts = estimate(manifest, prompt_tokens, image_sizes=sizes, provider=resolved, **request)
    show(facts, as_json=as_json)


@click.command()
@package_argument
@provider_option
@threads_option
def calibrate(*, model_path: Path, provider: str, num_threads: int | None) -> None:
    """Measure how fast PACKAGE runs on this machine, and keep the figures for predictions.

    Takes a minute or two for a package of Phi-3.5-vision's size; nothing else should be running.
    """
    from phi_edge.evaluation.measure import measure_speed
    from phi_edge.planning.speed import save_profile

    manifest = package.read_package(model_path)
    resolved = resolve_provider(provider, manifest.provider)
    speed = measure_speed(
        model_path,
        provider=resolved,
        num_threads=num_threads,
        prompt_lengths=_PROFILE_LENGTHS,
        num_completion_tokens=_NUM_DECODED,
        repetitions=1,
    )
    path = save_profile(speed.profile(), manifest, resolved, num_threads)
    show_facts(speed.facts())
    click.echo(f"kept in {path}")


@click.command()
@package_argument
@click.option(
    "--prompt-length",
    "prompt_lengths",
    type=click.IntRange(min=1),
    multiple=True,
    default=(128, 512, 2048),
    show_default=True,
    help="Tokens of a prompt; may be repeated.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True)
@json_option
@provider_option
@threads_option
def bench(
    *,
    model_path: Path,
    prompt_lengths: tuple[int, ...],
    max_tokens: int,
    repetitions: int,
    as_json: bool,
    provider: str,
    num_threads: int | None,
) -> None:
    """Measure how fast PACKAGE is here; the bundled one by default."""
    from phi_edge.evaluation.measure import measure_speed

    speed = measure_speed(
        model_path,
        provider=provider,
        num_threads=num_threads,
        prompt_lengths=prompt_lengths,
        num_completion_tokens=max_tokens,
        repetitions=repetitions,
    )
    show(dataclasses.asdict(speed) if as_json else speed.facts(), as_json=as_json)
