"""Reading a package, whoever wrote it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from phi_edge.errors import PackageError, PackageNotFoundError
from phi_edge.package.base import GENAI_CONFIG_FILE, Package
from phi_edge.package.layouts import find_config
from phi_edge.package.manifest import (
    MANIFEST_FILE,
    Manifest,
    check_files,
    describe_file,
    read_manifest,
)
from phi_edge.package.published import read_published

# A model's folder in the cache of the Hugging Face hub has packages so deep. The second is how many
# folders are looked into.
_MAX_DEPTH, _MAX_FOLDERS = 4, 500


def is_package(folder: Path) -> bool:
    """Tell whether a folder looks like a package."""
    return (folder / MANIFEST_FILE).is_file() or find_config(folder) is not None


def find_packages(folder: Path) -> list[Path]:
    """Find the packages in a folder: itself, or those in its subfolders.

    In a model's folder of the Hugging Face cache, they are those of the revision that is current.
    """
    found: list[Path] = []
    seen: set[Path] = set()
    level = [_current_revision(folder)]
    for _ in range(_MAX_DEPTH + 1):
        inner: list[Path] = []
        for each in level:
            with suppress(OSError):  # not for us to read
                if each.resolve() in seen or len(seen) > _MAX_FOLDERS:
                    continue
                seen.add(each.resolve())
                if is_package(each):
                    found.append(each)
                else:
                    inner += sorted(path for path in each.iterdir() if _is_to_be_searched(path))
        level = inner
    return found


def _is_to_be_searched(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _current_revision(folder: Path) -> Path:
    """Find the snapshot that a model's folder of the Hugging Face cache has for its main branch."""
    branch = folder / "refs" / "main"
    if branch.is_file():
        named = folder / "snapshots" / branch.read_text(encoding="utf-8", errors="replace").strip()
        return named if named.is_dir() else folder
    return folder


def read_package(folder: Path) -> Package:
    """Read what is known of a package, of our own or published by others.

    Raises:
        PackageNotFoundError: There is none.
        PackageError: It is damaged, or nothing that this version runs.
    """
    if (folder / MANIFEST_FILE).is_file():
        return read_manifest(folder)
    if find_config(folder) is None:
        raise PackageNotFoundError(
            f"{folder} is not a phi_edge package: it has no {MANIFEST_FILE}, nor the "
            f"{GENAI_CONFIG_FILE} of a published one. "
            "Make one with `phi-edge export CHECKPOINT OUT`"
        )
    return read_published(folder)


def check_package(folder: Path, package: Package, *, verify: bool = False) -> int:
    """Check the files of a package.

    Args:
        folder: The package.
        package: What `read_package` said of it.
        verify: Compare all digests that are known, those of large files too.

    Returns:
        The number of files that were compared with their digests.

    Raises:
        PackageError: Names every file that is missing or was changed.
    """
    known = {name: entry for name, entry in package.files.items() if entry.sha256}
    if isinstance(package, Manifest):
        check_files(folder, package, verify=verify)
    elif verify and (
        changed := [name for name, entry in known.items() if describe_file(folder / name) != entry]
    ):
        raise PackageError(
            f"{folder} is not as it was published: {', '.join(changed)} was changed (its "
            "SHA-256 differs). Fetch it again"
        )
    return len(known) if verify else 0
