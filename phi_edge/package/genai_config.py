"""What the `genai_config.json` of a package may say.

onnxruntime-genai loads the libraries and files that it names, `custom_ops_library` for example. So
it may name the package's own files, and none of the options that ours have no use for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phi_edge.errors import PackageError
from phi_edge.package import GENAI_CONFIG_FILE, Package

# What the exporter writes, and onnxruntime-genai's own builder.
_SESSION_OPTIONS = ("log_id", "log_severity_level", "provider_options")
_PROVIDER_OPTIONS = ("enable_cuda_graph", "enable_skip_layer_norm_strict_mode")


class _Object(list[tuple[str, Any]]):
    """A JSON object with every key that it has, those that come twice too."""


def check_genai_config(folder: Path, manifest: Package) -> None:
    """Refuse a configuration that would have more loaded than the package.

    Raises:
        PackageError: Says what is not allowed.
    """
    path = folder / GENAI_CONFIG_FILE
    if GENAI_CONFIG_FILE not in manifest.files:
        raise PackageError(
            f"the manifest of {folder} lists no {GENAI_CONFIG_FILE}: export it again"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Object)
    except ValueError as error:
        raise PackageError(f"{path} is damaged ({error}): export the package again") from None
    if problems := list(_problems(config, manifest)):
        raise PackageError(
            f"{path} has what onnxruntime-genai would load, or options that phi_edge does not pass "
            f"on: {', '.join(problems)}. Use the engine 'onnxruntime'"
        )


def _problems(value: object, manifest: Package) -> Iterator[str]:
    if isinstance(value, _Object):
        for key, content in value:
            if key == "session_options":
                yield from _option_problems(content)
            elif key.endswith("filename") and content not in list(manifest.files):
                yield f"{key} {content!r}"
            elif "library" in key:
                yield key
            else:
                yield from _problems(content, manifest)
    elif isinstance(value, list):
        for item in value:
            yield from _problems(item, manifest)


def _option_problems(options: object) -> Iterator[str]:
    if not isinstance(options, _Object):
        yield "session_options that are no object"
        return
    for key, content in options:
        if key not in _SESSION_OPTIONS or (key == "provider_options" and not _is_plain(content)):
            yield key


def _is_plain(provider_options: object) -> bool:
    """Tell whether they are names of providers, with none of the options that load something."""
    return isinstance(provider_options, list) and all(
        isinstance(entry, _Object)
        and all(
            isinstance(options, _Object) and all(key in _PROVIDER_OPTIONS for key, _ in options)
            for _, options in entry
        )
        for entry in provider_options
    )
