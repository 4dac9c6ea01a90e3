"""Commands that look at a package and at the installation: `info`, `verify`, `doctor`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from phi_edge import package
from phi_edge.engine.probe import choose_provider
from phi_edge.errors import ProviderError
from phi_edge.image.crops import CROP_SIZE, count_tokens
from phi_edge.loading import find_package

from .options import json_option, model_option, package_argument
from .show import show


@click.command()
@package_argument
@json_option
def info(*, model_path: Path, as_json: bool) -> None:
    """Tell what PACKAGE is, the bundled one by default."""
    manifest = package.read_package(model_path)
    package.check_package(model_path, manifest)
    show(_describe(manifest) | {"runs_on": _runs_on(manifest)}, as_json=as_json)


@click.command()
@package_argument
def verify(*, model_path: Path) -> None:
    """Compare every file of PACKAGE with its digest, and name what differs."""
    manifest = package.read_package(model_path)
    num_verified = package.check_package(model_path, manifest, verify=True)
    num_files = len(manifest.files)
    if isinstance(manifest, package.Manifest):
        found = f"all {num_files} files are as they were exported"
    elif num_verified:
        found = f"{num_verified} of {num_files} files are as they were published"
        found += "; no digests are known of the others" if num_verified < num_files else ""
    else:
        found = "no digests come with this package"
    click.echo(f"{model_path}: {found}")


def _runs_on(manifest: package.Package) -> str:
    """Tell what `--provider auto` means for this package, and why."""
    try:
        choice = choose_provider(manifest.provider)
    except ProviderError as error:
        return f"nothing: {error}"
    return f"{choice.provider}: {choice.reason}"


def _describe(manifest: package.Package) -> dict[str, Any]:
    model = manifest.model
    facts = {
        "name": manifest.name,
        "layout": manifest.layout,
        "precision": manifest.precision,
        "provider": manifest.provider,
        "size_bytes": manifest.size,
        "files": {name: entry.size for name, entry in manifest.files.items()},
        "context_length": model.context_length,
        "cache_dtype": model.cache_dtype,
        "cache_bytes_per_token": model.cache_bytes_per_token,
        "num_crops": model.num_crops,
        "image_tokens": {
            f"{rows} x {columns} crops": count_tokens((rows * CROP_SIZE, columns * CROP_SIZE))
            for rows, columns in ((1, 1), (2, 2), (3, 5), (4, 4))
        },
    }
    if isinstance(manifest, package.Manifest):
        facts |= {
            "format_version": manifest.format_version,
            "quantizers": {
                group: f"{q['bits']} bits, block {q['block_size']}, "
                f"{'symmetric' if q['symmetric'] else 'asymmetric'}, "
                f"accuracy level {q['accuracy_level']}"
                for group, q in manifest.recipe["quantizers"].items()
            },
            "source_digest": manifest.source_digest,
            "versions": dict(manifest.versions),
        }
    return facts


@click.command()
@model_option
@json_option
def doctor(*, model_path: Path | None, as_json: bool) -> None:
    """Tell what is installed, and which providers really run our operators.

    The exit code is 0 if the one that the package was built for does.
    """
    from phi_edge.engine.doctor import examine

    found = examine(package.read_package(find_package(model_path)).provider)
    facts = dataclasses.asdict(found) | {"is_well": found.is_well}
    show(facts if as_json else found.summary(), as_json=as_json)
    sys.exit(0 if found.is_well else 1)
