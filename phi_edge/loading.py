"""Loading a package: its files are checked, and engine, caches and memory are chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tokenizers import Tokenizer
from typing_extensions import TypedDict

from phi_edge import package
from phi_edge.cache.disk import DiskCache
from phi_edge.cache.pool import PREFIX_CACHE_BYTES
from phi_edge.engine.base import Engine
from phi_edge.engine.genai import GenaiEngine
from phi_edge.engine.ort import OrtEngine
from phi_edge.engine.probe import AUTO, resolve_provider
from phi_edge.errors import PackageError
from phi_edge.loaded_model import Model
from phi_edge.planning.memory import check_needs, predict_needs

# A small model of the same architecture, for trying things out; see its README.md.
BUNDLED_MODEL = Path(__file__).parent / "phi-edge-tiny"
ENGINES = ("onnxruntime", "genai")


def find_package(source: str | Path | None = None) -> Path:
    """Find the folder of a package.

    Args:
        source: Its path, or the name of its model, in any case: that of the default package or of
            phi-edge-tiny, which comes along. The default when None: the package that the
            environment variable `PHI_EDGE_MODEL` names, or phi-edge-tiny.

    Returns:
        A folder; there may be no package in it.
    """
    default = Path(os.environ.get("PHI_EDGE_MODEL") or BUNDLED_MODEL)
    if source is None:
        return default
    folder = Path(source)
    if folder.exists():
        return folder
    for known in (default, BUNDLED_MODEL):
        with suppress(PackageError):  # it was not asked for
            if package.read_manifest(known).name.lower() == str(source).lower():
                return known
    return folder


class LoadOptions(TypedDict, total=False):
    """Arguments of `load_model` besides the path, as keywords of what loads a model."""

    provider: str
    provider_options: Mapping[str, object] | None
    engine: str
    num_threads: int | None
    prefix_cache_bytes: int
    disk_cache: str | Path | None
    max_ram_mb: int | None
    verify: bool


def load_model(
    path: str | Path | None = None,
    *,
    provider: str = AUTO,
    provider_options: Mapping[str, object] | None = None,
    engine: str = "onnxruntime",
    num_threads: int | None = None,
    prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
    disk_cache: str | Path | None = None,
    max_ram_mb: int | None = None,
    verify: bool = False,
) -> Model:
    """Load a package.

    Args:
        path: The package folder, or its model's name; see `find_package`. Without one, and without
            `PHI_EDGE_MODEL`, it is the bundled phi-edge-tiny, which knows little more than coloured
            shapes, bar charts and printed words.
        provider: Where to run: a name of `phi_edge.engine.providers`, which is never replaced by
            another. "auto" is what the package was built for, if that works here, and else, with a
            warning, the CPU.
        provider_options: ONNX Runtime's options of the provider, such as `device_id` or
            `gpu_mem_limit` (bytes).
        engine: "onnxruntime", or "genai" for onnxruntime-genai, which gives the same answers.
        num_threads: Threads for the CPU kernels; None for one a physical core.
        prefix_cache_bytes: How much memory finished conversations may keep, so that their next
            turn, or another question about the same image, needs no new prefill; 0 for none.
        disk_cache: Folder that keeps image features and prefilled prompts between processes, up
            to 8 GiB, in files that their owner alone can read; nothing is kept when None. What
            images and prompts say can be told from them.
        max_ram_mb: Most memory that the process may take, in 10^6 bytes, as far as it can be
            predicted (see `phi_edge.planning`) for one request at a time on the CPU. What would
            take more is refused before any work; what is kept is forgotten first.
        verify: Read the whole package and compare the digests of the large files too.

    Raises:
        ValueError: There is no such engine.
        PackageError: The package is missing, damaged, or was changed after its export.
        ProviderError: ONNX Runtime or the provider is not available.
        EngineError: A graph cannot be loaded.
        MemoryLimitError: The package alone would take more than `max_ram_mb`.
        OSError: The folder of `disk_cache` cannot be made.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if disk_cache and engine != ENGINES[0]:
        raise ValueError(f"disk_cache goes with the engine {ENGINES[0]!r} alone")
    folder = find_package(path)
    manifest = package.read_manifest(folder)
    package.check_files(folder, manifest, verify=verify)
    max_ram_bytes = None if max_ram_mb is None else max_ram_mb * 10**6
    if max_ram_bytes is not None:
        check_needs(predict_needs(manifest, 1), max_ram_bytes)
    try:
        tokenizer = Tokenizer.from_file(str(folder / package.TOKENIZER_FILE))
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception
        raise PackageError(f"{folder / package.TOKENIZER_FILE} cannot be read: {error}") from None
    provider = resolve_provider(provider, manifest.provider)
    opened: Engine
    if engine == "onnxruntime":
        opened = OrtEngine(folder, manifest, provider, num_threads, provider_options)
    else:
        opened = GenaiEngine(folder, manifest, provider, num_threads, provider_options)
    disk = DiskCache(Path(disk_cache), manifest, provider) if disk_cache else None
    return Model(
        manifest,
        tokenizer,
        opened,
        prefix_cache_bytes,
        disk,
        max_ram_bytes,
        provider=provider,
        num_threads=num_threads,
    )
