"""Commands that tell something: `phi-edge info`, `verify`, `doctor`, `calibrate`, `bench`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from phi_edge import package
from phi_edge.engine.probe import choose_provider, resolve_provider
from phi_edge.errors import ProviderError
from phi_edge.image.crops import CROP_SIZE, count_tokens
from phi_edge.loading import BUNDLED_MODEL, load_model

from .options import json_option, model_option, provider_option, threads_option
from .show import show_facts

_package_argument = click.argument(
    "model_path", metavar="[PACKAGE]", type=click.Path(path_type=Path), default=BUNDLED_MODEL
)


@click.command()
@_package_argument
@json_option
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    help="Tell what a request would take whose text has so many tokens.",
)
@click.option(
    "--images",
    "num_images",
    type=click.IntRange(min=0),
    default=0,
    help="Square images of that request.",
)
@click.option("--detail", type=click.Choice(["low", "auto", "high"]), help="Their detail.")
@click.option("--num-crops", type=click.IntRange(min=1), help="Their crops, instead of a detail.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Tokens of that request's completion.",
)
@provider_option
@threads_option
def info(
    *,
    model_path: Path,
    as_json: bool,
    prompt_tokens: int | None,
    provider: str,
    **request: Any,
) -> None:
    """Tell what PACKAGE is, the bundled one by default; or what a request to it would take."""
    manifest = package.read_manifest(model_path)
    package.check_files(model_path, manifest)
    if prompt_tokens is None:
        if request["num_images"]:
            raise click.UsageError("--images goes with --prompt-tokens")
        facts = _describe(manifest) | {"runs_on": _runs_on(manifest)}
    else:
        from phi_edge.planning.estimate import estimate

        resolved = resolve_provider(provider, manifest.provider)
        facts = estimate(manifest, prompt_tokens, provider=resolved, **request)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        show_facts(facts)


@click.command()
@_package_argument
def verify(*, model_path: Path) -> None:
    """Compare every file of PACKAGE with its digest, and name what differs."""
    manifest = package.read_manifest(model_path)
    package.check_files(model_path, manifest, verify=True)
    click.echo(f"{model_path}: all {len(manifest.files)} files are as they were exported")


def _runs_on(manifest: package.Manifest) -> str:
    """What `--provider auto` means for this package, and why."""
    try:
        choice = choose_provider(manifest.provider)
    except ProviderError as error:
        return f"nothing: {error}"
    return f"{choice.provider}: {choice.reason}"


def _describe(manifest: package.Manifest) -> dict[str, Any]:
    model = manifest.model
    return {
        "name": manifest.name,
        "precision": manifest.precision,
        "provider": manifest.provider,
        "format_version": manifest.format_version,
        "size_bytes": manifest.size,
        "files": {name: entry.size for name, entry in manifest.files.items()},
        "quantizers": {
            group: f"{q['bits']} bits, block {q['block_size']}, "
            f"{'symmetric' if q['symmetric'] else 'asymmetric'}, "
            f"accuracy level {q['accuracy_level']}"
            for group, q in manifest.recipe["quantizers"].items()
        },
        "context_length": model.context_length,
        "cache_dtype": model.cache_dtype,
        "cache_bytes_per_token": model.cache_bytes_per_token,
        "num_crops": model.num_crops,
        "image_tokens": {
            f"{rows} x {columns} crops": count_tokens((rows * CROP_SIZE, columns * CROP_SIZE))
            for rows, columns in ((1, 1), (2, 2), (3, 5), (4, 4))
        },
        "source_digest": manifest.source_digest,
        "versions": dict(manifest.versions),
    }


@click.command()
@model_option
@json_option
def doctor(*, model_path: Path | None, as_json: bool) -> None:
    """Tell what is installed, and which providers really run our operators.

    The exit code is 0 if the one that the package was built for does.
    """
    from phi_edge.engine.doctor import examine

    found = examine(package.read_manifest(model_path or BUNDLED_MODEL).provider)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found) | {"is_well": found.is_well}, indent=2))
    else:
        show_facts(found.summary())
    sys.exit(0 if found.is_well else 1)


@click.command()
@_package_argument
@provider_option
@threads_option
def calibrate(*, model_path: Path, provider: str, threads: int | None) -> None:
    """Measure how fast PACKAGE runs on this machine, and keep the figures for predictions.

    Takes a minute or two for a package of Phi-3.5-vision's size; nothing else should be running.
    """
    from phi_edge.planning.speed import measure, save_calibration

    resolved = resolve_provider(provider, package.read_manifest(model_path).provider)
    with load_model(model_path, provider=resolved, num_threads=threads) as model:
        calibration = measure(model)
    path = save_calibration(calibration, model.manifest, resolved, threads)
    show_facts({name: f"{value:.3g}" for name, value in dataclasses.asdict(calibration).items()})
    click.echo(f"kept in {path}")


@click.command()
@_package_argument
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
    threads: int | None,
) -> None:
    """Measure how fast PACKAGE is here; the bundled one by default."""
    from phi_edge.evaluation.measure import measure_speed

    speed = measure_speed(
        model_path,
        provider=provider,
        num_threads=threads,
        prompt_lengths=prompt_lengths,
        num_completion_tokens=max_tokens,
        repetitions=repetitions,
    )
    if as_json:
        click.echo(json.dumps(speed.as_dict(), indent=2))
        return
    facts: dict[str, Any] = {
        "load": f"{speed.load_s:.2f} s",
        "vision": f"{speed.vision_s_per_crop:.3f} s a crop",
    }
    for text in speed.text:
        facts[f"{text.num_prompt_tokens:,} tokens"] = (
            f"prefill {text.prefill_tokens_per_s:,.1f} tokens/s, "
            f"then decode {text.decode_tokens_per_s:,.1f} tokens/s"
        )
    if speed.peak_rss_bytes is not None:
        facts["peak_RSS"] = f"{speed.peak_rss_bytes / 1e9:.2f} GB"
    show_facts(facts)
