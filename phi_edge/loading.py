"""Loading a package: its files are checked, and engine, caches and memory are chosen."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tokenizers import Tokenizer
from typing_extensions import TypedDict

from phi_edge import package
from phi_edge.cache.disk import DiskCache
from phi_edge.cache.pool import PREFIX_CACHE_BYTES
from phi_edge.engine.base import Engine
from phi_edge.engine.genai import GenaiEngine
from phi_edge.engine.ort import OrtEngine
from phi_edge.engine.ort_published import PublishedEngine
from phi_edge.engine.probe import AUTO, resolve_provider, why_not
from phi_edge.engine.providers import find_provider
from phi_edge.errors import PackageError
from phi_edge.loaded_model import Model
from phi_edge.planning.memory import check_needs, predict_needs

logger = logging.getLogger(__name__)

# A small model of the same architecture, for trying things out; see its README.md.
BUNDLED_MODEL = Path(__file__).parent / "phi-edge-tiny"
ENGINES = ("onnxruntime", "genai")


def find_package(source: str | Path | None = None, provider: str = AUTO) -> Path:
    """Find the folder of a package.

    Args:
        source: Its path, that of a folder which has it in a subfolder, or the name of its model, in
            any case: that of the default package or of phi-edge-tiny, which comes along. The
            default when None: the package that the environment variable `PHI_EDGE_MODEL` names, or
            phi-edge-tiny.
        provider: Where it is to run, as in `load_model`. It chooses among several subfolders, as a
            published repository has them, by the type that they compute in.

    Returns:
        A folder; there may be no package in it.

    Raises:
        PackageError: The subfolders have several models, or what they have is damaged.
    """
    default = Path(os.environ.get("PHI_EDGE_MODEL") or BUNDLED_MODEL)
    folder = default if source is None else Path(source)
    if folder.exists():
        return _choose_subfolder(folder, provider)
    for known in (default, BUNDLED_MODEL):
        with suppress(PackageError):  # it was not asked for
            chosen = _choose_subfolder(known, provider)
            if package.read_package(chosen).name.lower() == str(source).lower():
                return chosen
    return folder


def _choose_subfolder(folder: Path, provider: str) -> Path:
    """Choose among the packages in a folder; it is the folder itself where that is one."""
    found = package.find_packages(folder)
    if len(found) <= 1:
        return found[0] if found else folder
    packages = _read_those_that_work(found)
    names = ", ".join(str(path.relative_to(folder)) for path in packages)
    for name in _wanted(provider, packages.values()):
        dtype = find_provider(name).float_dtype
        if fit := [path for path, each in packages.items() if each.model.io_dtype == dtype]:
            break
    else:
        if provider not in (AUTO, "cpu"):
            raise PackageError(f"{folder} has no package for {provider}: name one of {names}")
        fit = list(packages)  # the CPU runs all, if slowly
    if len({packages[path].name for path in fit}) > 1:
        raise PackageError(f"{folder} has several models: name one of {names}")
    taken = min(fit, key=lambda path: _rank(packages[path]))
    logger.info("%s has %s: taking %s", folder, names, taken.relative_to(folder))
    return taken


def _read_those_that_work(folders: Sequence[Path]) -> dict[Path, package.Package]:
    """Read packages; if all are damaged, the first one's error is raised."""
    packages = {}
    for folder in folders:
        with _left_out_if_damaged():
            packages[folder] = package.read_package(folder)
    return packages or {folders[0]: package.read_package(folders[0])}


@contextmanager
def _left_out_if_damaged() -> Iterator[None]:
    try:
        yield
    except PackageError as error:
        logger.warning("left out: %s", error)


def _wanted(provider: str, packages: Iterable[package.Package]) -> list[str]:
    """Providers to find a package for; if none is named, those that work here, the CPU last."""
    if provider != AUTO:
        return [provider]
    built_for = {each.provider for each in packages}
    return [*(name for name in sorted(built_for - {"cpu"}) if not why_not(name)), "cpu"]


def _rank(found: package.Package) -> tuple[bool, int]:
    """Rank packages of the same model: those that multiply in 8 bits first, and small ones."""
    is_slow = isinstance(found, package.PublishedPackage) and 4 not in found.accuracy_levels
    return is_slow, found.size


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
    """Load a package, of our own or one that others have published.

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
        verify: Read the whole package and compare the digests of the large files too. A published
            package has digests if the Hugging Face hub's own tools fetched it.

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
    folder = find_package(path, provider)
    manifest = package.read_package(folder)
    num_verified = package.check_package(folder, manifest, verify=verify)
    if verify and not num_verified:
        logger.warning("%s comes with no digests: nothing could be verified", folder)
    max_ram_bytes = None if max_ram_mb is None else max_ram_mb * 10**6
    if max_ram_bytes is not None:
        check_needs(predict_needs(manifest, 1), max_ram_bytes)
    tokenizer = _load_tokenizer(folder / package.TOKENIZER_FILE)
    provider = resolve_provider(provider, manifest.provider)
    opened: Engine
    if engine == "genai":
        opened = GenaiEngine(folder, manifest, provider, num_threads, provider_options)
    elif isinstance(manifest, package.PublishedPackage):
        opened = PublishedEngine(folder, manifest, provider, num_threads, provider_options)
    else:
        opened = OrtEngine(folder, manifest, provider, num_threads, provider_options)
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


def _load_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise PackageError(f"{path} is missing: copy it from the model's repository")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception
        raise PackageError(f"{path} cannot be read: {error}") from None
