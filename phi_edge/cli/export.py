"""`phi-edge export` and `certify`: where the runtime meets the exporter."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from phi_edge import package
from phi_edge.engine.providers import TARGETS
from phi_edge.engine.session import import_onnxruntime
from phi_edge.errors import PackageError
from phi_edge.evaluation.samples import Sample, bundled_samples, read_samples
from phi_edge.loaded_model import Model
from phi_edge.loading import load_model

from .options import json_option, provider_option, threads_option
from .show import export_progress, show_facts

if TYPE_CHECKING:
    from phi_edge.evaluation.certify import Certificate, Reference

# One sample of a few is enough for the certificate that an export makes.
_CERTIFICATE_STEP = 3
_NUM_WORST = 5
# The release of ONNX Runtime that int8 caches were measured with. Those of early 2026 have no
# kernel for them on the CPU (microsoft/onnxruntime#28578).
_INT8_CACHE_SINCE = (1, 32)


@click.command()
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(["int4", "fp16", "fp32"]),
    default="int4",
    show_default=True,
    help="How weights are stored.",
)
@click.option(
    "--method",
    type=click.Choice(["gptq", "search", "nearest"]),
    help="How int4 values are chosen. gptq, the default, is calibrated on samples: it takes "
    "longest and is best. search looks for good scales, nearest takes the first ones.",
)
@click.option(
    "--block-size",
    type=click.Choice(["16", "32", "64", "128", "256"]),
    help="Weights that share an int4 scale; 128 by default. Large blocks are fast on a CPU.",
)
@click.option(
    "--activations",
    type=click.Choice(["auto", "int8", "float"]),
    help="What int4 weights are multiplied by on a CPU: activations rounded to 8 bits, which is "
    "fast, or as they are. auto, the default, rounds where calibration finds it harmless.",
)
@click.option(
    "--bits",
    multiple=True,
    metavar="PATTERN=BITS",
    help="Bits of some of the layers, as 'model.layers.*.mlp.down_proj=8'; may be repeated.",
)
@click.option(
    "--cache-dtype",
    type=click.Choice(["int8", "float"]),
    help="Of the key/value cache. int8 takes a quarter of the memory, is faster after long "
    "prompts, and wants samples; it is the default with gptq for a CPU, where ONNX Runtime is new "
    "enough.",
)
@click.option(
    "--prefill-dtype",
    type=click.Choice(["int4", "int8"]),
    help="int8 adds a second copy of the decoder's weights, which prompts run on, and not answers: "
    "they take less than two thirds of the time, and the weights three times the memory. int4, the "
    "default, adds none.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Folder of samples to calibrate on: images, texts, or samples.jsonl. A bundled set when "
    "not given.",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="Folder of a LoRA adapter, as PEFT writes it, to merge into the weights.",
)
@click.option(
    "--provider",
    type=click.Choice(TARGETS),
    default="cpu",
    show_default=True,
    help="Execution provider to build for.",
)
@click.option("--overwrite", is_flag=True, help="Replace a package that is already at OUT.")
@click.option(
    "--certify/--no-certify",
    "with_certificate",
    default=True,
    show_default=True,
    help="Compare the package with the checkpoint on a few samples; for the CPU alone.",
)
def export(
    *,
    checkpoint: str,
    out: Path,
    precision: str,
    method: str | None,
    block_size: str | None,
    activations: str | None,
    bits: tuple[str, ...],
    cache_dtype: str | None,
    prefill_dtype: str | None,
    calibration: Path | None,
    adapter: Path | None,
    provider: str,
    overwrite: bool,
    with_certificate: bool,
) -> None:
    """Convert CHECKPOINT, a folder or a Hugging Face hub name, to the package OUT."""
    of_int4 = (method, block_size, activations, bits, cache_dtype, prefill_dtype, calibration)
    if precision != "int4" and any(of_int4):
        raise click.UsageError("--method and the options after it go with --precision int4 alone")
    exporter, quantizer = _tool("export"), _tool("quantize")
    recipe = quantizer.make_recipe(
        precision,
        provider,
        method=method or "gptq",
        block_size=int(block_size or 128),
        activations=activations or "auto",
        bits=dict(map(_read_bits, bits)),
        cache_dtype=cache_dtype or _default_cache(precision, method, provider),
        prefill_dtype=prefill_dtype or "int4",
    )
    if calibration and not recipe.is_calibrated:
        raise click.UsageError(f"--method {method} looks at no samples: leave --calibration out")
    source = exporter.Checkpoint(exporter.find_checkpoint(checkpoint), adapter)
    samples = []
    if recipe.is_calibrated:
        chosen = read_samples(calibration) if calibration else bundled_samples("calibration")
        samples = exporter.encode_samples(source, chosen)
    with export_progress() as progress:
        manifest = exporter.export_package(
            source,
            out,
            recipe,
            provider=provider,
            overwrite=overwrite,
            samples=samples,
            progress=progress,
        )
    from rich.filesize import decimal

    click.echo(f"{out}: {precision} for {provider}, {decimal(manifest.size)}")
    if with_certificate and provider == "cpu":
        few = bundled_samples("held_out")[::_CERTIFICATE_STEP]
        certificate = _certify(out, few, load_model, _checkpoint_reference(source, out))
        click.echo(
            f"on {certificate.num_tokens} tokens, the same next token as the checkpoint's in "
            f"{certificate.next_token_agreement:.1%}, KL divergence "
            f"{certificate.kl_divergence:.4f} nats"
        )


def _default_cache(precision: str, method: str | None, provider: str) -> str:
    """Choose the type of the key/value cache, where none is asked for."""
    if (precision, provider) != ("int4", "cpu") or method not in (None, "gptq"):
        return "float"
    release = import_onnxruntime().__version__.split(".")
    return "int8" if tuple(map(int, release[:2])) >= _INT8_CACHE_SINCE else "float"


def _read_bits(text: str) -> tuple[str, int]:
    """Read a pattern of layer names, and bits."""
    pattern, _, bits = text.rpartition("=")
    if not pattern or bits not in ("4", "8"):
        raise click.UsageError(f"--bits takes PATTERN=4 or PATTERN=8, not {text!r}")
    return pattern, int(bits)


def _tool(name: str) -> ModuleType:
    """Import the folder `export` or `quantize`: inside the installed package, or beside it in a
    checkout.
    """
    installed = f"phi_edge.{name}"
    try:
        return importlib.import_module(installed if find_spec(installed) else name)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"exporting needs {error.name}: run `pip install 'phi-edge[export]'`"
        ) from None


@click.command()
@click.argument("model_path", metavar="PACKAGE", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    required=True,
    help="What to compare with: the checkpoint (a folder or a hub name), or another package of it.",
)
@click.option(
    "--samples",
    "samples_path",
    type=click.Path(path_type=Path),
    help="Folder of samples: images, texts, or samples.jsonl. A bundled set when not given.",
)
@json_option
@provider_option
@threads_option
def certify(
    *,
    model_path: Path,
    reference: str,
    samples_path: Path | None,
    as_json: bool,
    provider: str,
    num_threads: int | None,
) -> None:
    """Tell what the conversion of PACKAGE has changed, and write it down in the package."""
    samples = read_samples(samples_path) if samples_path else bundled_samples("held_out")
    manifest = package.read_manifest(model_path)
    load = partial(load_model, provider=provider, num_threads=num_threads)
    opening: AbstractContextManager[Reference]
    if (Path(reference) / package.MANIFEST_FILE).is_file():
        package.read_manifest(Path(reference))
        opening = _package_reference(Path(reference), load)
    else:
        exporter = _tool("export")
        checkpoint = exporter.Checkpoint(exporter.find_checkpoint(reference))
        opening = _checkpoint_reference(checkpoint, model_path)
    certificate = _certify(model_path, samples, load, opening)
    if as_json:
        click.echo(json.dumps(certificate.as_dict(), indent=2))
        return
    facts = certificate.as_dict()
    show_facts({name: f"{v:.4f}" if isinstance(v, float) else v for name, v in facts.items()})
    _show_worst_layers(manifest)


def _certify(
    model_path: Path,
    samples: Sequence[Sample],
    load: Callable[[Path], Model],
    opening: AbstractContextManager[Reference],
) -> Certificate:
    """Compare a package with a reference, which is opened when the package is closed."""
    from phi_edge.evaluation.certify import certify, observe, write_certificate

    with load(model_path) as model:
        observations = observe(model, samples)
    with opening as reference:
        certificate = certify(observations, reference)
    if package.read_manifest(model_path) != model.manifest:
        raise PackageError(f"{model_path} was replaced while it was certified: do it again")
    write_certificate(model_path, certificate)
    return certificate


@contextmanager
def _package_reference(folder: Path, load: Callable[[Path], Model]) -> Iterator[Reference]:
    from phi_edge.evaluation.certify import PackageReference

    with load(folder) as model:
        yield PackageReference(model)


def _checkpoint_reference(checkpoint: Any, model_path: Path) -> AbstractContextManager[Reference]:
    """Open a checkpoint, which is run layer by layer beside the package on the disk."""
    folder = model_path.resolve().with_name(f".{model_path.name}.certificate")
    return nullcontext(_tool("export").CheckpointReference(checkpoint, folder))


def _show_worst_layers(manifest: package.Manifest) -> None:
    """Show the layers whose outputs calibration found to be changed most."""
    layers = manifest.recipe.get("layers") or {}
    if not layers:
        return
    worst = sorted(layers, key=lambda name: layers[name]["error"], reverse=True)
    num_exact = sum(facts["accuracy_level"] != 4 for facts in layers.values())
    click.echo(
        f"\n{num_exact} of {len(layers)} layers keep their activations in float32. "
        "Relative error of the outputs, largest first:"
    )
    show_facts({name: f"{layers[name]['error']:.4f}" for name in worst[:_NUM_WORST]})
