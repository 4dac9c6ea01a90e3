"""The command line: `phi-edge export`, `chat`, `serve`, `info`, `certify`."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from phi_edge import __version__, package
from phi_edge.errors import PhiEdgeError
from phi_edge.image import CROP_SIZE, ImageCrops, count_tokens
from phi_edge.image_file import open_image
from phi_edge.model import BUNDLED_MODEL, Model, load_model
from phi_edge.prompt import chat_text, image_tags
from phi_edge.samples import bundled_samples, read_samples
from phi_edge.session import PROVIDERS

_INTERRUPTED = 130

_provider_option = click.option(
    "--provider",
    type=click.Choice(list(PROVIDERS)),
    default="cpu",
    show_default=True,
    help="Execution provider.",
)
_model_option = click.option(
    "--model",
    "model_path",
    type=click.Path(path_type=Path),
    envvar="PHI_EDGE_MODEL",
    help="Package folder; the bundled phi-edge-tiny, a test model, when not given.",
)
_threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 if all went well, 1 for a failure, 2 for bad use."""
    try:
        cli.main(arguments, prog_name="phi-edge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2 if isinstance(error, click.UsageError) else 1)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", _INTERRUPTED)
    except PhiEdgeError as error:
        _fail(str(error), 1)
    except ValueError as error:
        _fail(str(error), 2)
    except (OSError, MemoryError) as error:
        _fail(f"{type(error).__name__}: {error}", 1)


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log what is being done.")
def cli(*, verbose: bool) -> None:
    """Run Phi-3.5-vision on your own machine."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s"
    )


@cli.command()
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
    type=click.Choice(["nearest", "search", "gptq"]),
    default="nearest",
    show_default=True,
    help="How int4 values are chosen: the nearest, by a search for the best scales, or calibrated "
    "on samples, which takes longest and is best.",
)
@click.option(
    "--block-size",
    type=click.Choice(["16", "32", "64", "128", "256"]),
    default="32",
    show_default=True,
    help="Weights that share an int4 scale.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Folder of samples for --method gptq: images, texts, or samples.jsonl. A bundled set "
    "when not given.",
)
@click.option(
    "--float-activations",
    is_flag=True,
    help="int4 on the CPU: do not round activations to 8 bits. Slower, and nearer to the "
    "checkpoint where single channels are far larger than the rest.",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="Folder of a LoRA adapter, as PEFT writes it, to merge into the weights.",
)
@_provider_option
@click.option("--overwrite", is_flag=True, help="Replace a package that is already at OUT.")
def export(
    *,
    checkpoint: str,
    out: Path,
    precision: str,
    method: str,
    block_size: str,
    calibration: Path | None,
    float_activations: bool,
    adapter: Path | None,
    provider: str,
    overwrite: bool,
) -> None:
    """Convert CHECKPOINT, a folder or a Hugging Face hub name, to the package OUT."""
    if calibration and method != "gptq":
        raise click.UsageError("--calibration goes with --method gptq alone")
    exporter, quantizer = _tool("export"), _tool("quantize")
    source = exporter.Checkpoint(exporter.find_checkpoint(checkpoint), adapter)
    recipe = quantizer.make_recipe(
        precision,
        provider,
        method=method,
        block_size=int(block_size),
        float_activations=float_activations,
    )
    samples = []
    if method == "gptq":
        chosen = read_samples(calibration) if calibration else bundled_samples("calibration")
        samples = exporter.encode_samples(source, chosen)
    with _progress() as progress:
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


@contextmanager
def _progress() -> Iterator[Callable[[Any], None]]:
    """A bar that shows tensors, bytes and the time left; nothing where there is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def show(state: Any) -> None:
            bar.update(
                task,
                # Bytes, since tensors differ in size a thousandfold.
                completed=state.num_bytes,
                total=state.total_bytes,
                description=f"tensor {state.num_tensors + 1}/{state.total_tensors}",
            )

        yield show


def _tool(name: str) -> ModuleType:
    """The folder `export` or `quantize`: inside the installed package, or beside it in a
    checkout.
    """
    installed = f"phi_edge.{name}"
    try:
        return importlib.import_module(installed if find_spec(installed) else name)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"exporting needs {error.name}: run `pip install 'phi-edge[export]'`"
        ) from None


@cli.command()
@click.argument("prompt", required=False)
@_model_option
@click.option(
    "--image",
    "image_paths",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Image to talk about; may be repeated.",
)
@click.option("--num-crops", type=click.IntRange(min=1), help="Most crops an image.")
@click.option("--system", help="System message.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@_provider_option
@_threads_option
def chat(
    *,
    prompt: str | None,
    model_path: Path | None,
    image_paths: tuple[Path, ...],
    num_crops: int | None,
    system: str | None,
    provider: str,
    threads: int | None,
    **sampling: Any,
) -> None:
    """Answer PROMPT; without one, hold a conversation until the end of input."""
    images = [open_image(path) for path in image_paths]
    if model_path is None and sys.stderr.isatty():
        click.echo("phi-edge-tiny, a test model; --model takes a package of your own", err=True)
    with load_model(model_path, provider=provider, num_threads=threads) as model:
        crops = [model.preprocess(image, num_crops) for image in images]
        tags = image_tags(len(crops))
        turns = [("system", system)] if system else []
        for question in [prompt] if prompt is not None else _ask():
            turns.append(("user", tags + question))
            tags = ""
            turns.append(("assistant", _answer(model, turns, crops, sampling)))


def _ask() -> Iterator[str]:
    """Questions from the terminal, or from a pipe line by line."""
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
    sampling: dict[str, Any],
) -> str:
    """Stream an answer to the terminal and give it back."""
    pieces = []
    prompt = model.encode_prompt(chat_text(turns), crops)
    for event in model.generate(prompt, **sampling):
        pieces.append(event.text)
        click.echo(event.text, nl=False)
    click.echo()
    return "".join(pieces)


@cli.command()
@_model_option
@_provider_option
@_threads_option
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
    provider: str,
    threads: int | None,
    host: str,
    port: int,
    api_key: str | None,
    max_waiting: int,
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
    with load_model(model_path, provider=provider, num_threads=threads) as model:
        service = ChatService(model, content_filters=filters, **settings)
        run_server(service, host=host, port=port, api_key=api_key, max_waiting=max_waiting)


@cli.command()
@click.argument("model_path", type=click.Path(path_type=Path), default=BUNDLED_MODEL)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--verify", is_flag=True, help="Compare every file with its digest.")
def info(*, model_path: Path, as_json: bool, verify: bool) -> None:
    """Tell what the package at MODEL_PATH is; the bundled one by default."""
    manifest = package.read_manifest(model_path)
    package.check_files(model_path, manifest, verify=verify)
    facts = _describe(manifest)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    _show(facts)


def _show(facts: dict[str, Any]) -> None:
    """A table of names and values."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        shown = (
            "\n".join(f"{key}: {entry}" for key, entry in value.items())
            if isinstance(value, dict)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )
        table.add_row(name.replace("_", " "), shown)
    Console().print(table, markup=False)


@cli.command()
@click.argument("model_path", metavar="PACKAGE", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    "reference_path",
    type=click.Path(path_type=Path),
    required=True,
    help="Package of the same checkpoint to compare with, as a rule of precision fp32.",
)
@click.option(
    "--samples",
    "samples_path",
    type=click.Path(path_type=Path),
    help="Folder of samples: images, texts, or samples.jsonl. A bundled set when not given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_provider_option
@_threads_option
def certify(
    *,
    model_path: Path,
    reference_path: Path,
    samples_path: Path | None,
    as_json: bool,
    provider: str,
    threads: int | None,
) -> None:
    """Tell what the conversion of PACKAGE has changed, and write it down in the package."""
    from phi_edge.certify import CERTIFICATE_FILE, certify

    samples = read_samples(samples_path) if samples_path else bundled_samples("held_out")
    with (
        load_model(model_path, provider=provider, num_threads=threads) as model,
        load_model(reference_path, provider=provider, num_threads=threads) as reference,
    ):
        facts = certify(model, reference, samples).as_dict()
    text = json.dumps(facts, indent=2)
    (model_path / CERTIFICATE_FILE).write_text(f"{text}\n", encoding="utf-8")
    if as_json:
        click.echo(text)
    else:
        _show({name: f"{v:.4f}" if isinstance(v, float) else v for name, v in facts.items()})


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
        "cache_bytes_per_token": model.cache_bytes_per_token,
        "num_crops": model.num_crops,
        "image_tokens": {
            f"{rows} x {columns} crops": count_tokens((rows * CROP_SIZE, columns * CROP_SIZE))
            for rows, columns in ((1, 1), (2, 2), (3, 5), (4, 4))
        },
        "source_digest": manifest.source_digest,
        "versions": dict(manifest.versions),
    }
