"""ONNX Runtime sessions: the one place that imports onnxruntime and maps its errors to ours."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from phi_edge.errors import EngineError, ProviderError

logger = logging.getLogger(__name__)

# Provider name -> ONNX Runtime's name, and the extra that installs it.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": ("CUDAExecutionProvider", "cuda"),
    "dml": ("DmlExecutionProvider", "directml"),
}


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime, with its telemetry off.

    Raises:
        ProviderError: No flavour of it is installed.
    """
    # Official builds send telemetry unless this is set before the import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ProviderError(
            f"ONNX Runtime cannot be imported ({error}). It comes in flavours that exclude each "
            "other; install one: `pip install 'phi-edge[cpu]'`, `pip install 'phi-edge[cuda]'` "
            "or `pip install 'phi-edge[directml]'`"
        ) from None


def check_provider(provider: str) -> str:
    """ONNX Runtime's name of a provider.

    Raises:
        ProviderError: There is no such provider, or the installed flavour lacks it.
    """
    if provider not in PROVIDERS:
        raise ProviderError(
            f"there is no provider {provider!r}: choose one of {', '.join(PROVIDERS)}"
        )
    name, extra = PROVIDERS[provider]
    available = import_onnxruntime().get_available_providers()
    if name not in available:
        raise ProviderError(
            f"the installed ONNX Runtime has no {name} (it has {', '.join(available)}): "
            f"uninstall it and run `pip install 'phi-edge[{extra}]'`"
        )
    return name


def open_session(path: Path, provider: str, num_threads: int | None = None) -> Any:
    """Open a graph on a provider, which is never replaced by another behind the caller's back.

    Args:
        path: ONNX file.
        provider: "cpu", "cuda" or "dml".
        num_threads: Threads of the CPU kernels; None for one a physical core.

    Raises:
        ProviderError: The provider is not available or fails to start.
        EngineError: The graph cannot be loaded.
    """
    name = check_provider(provider)
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; ours say what a warning would
    options.intra_op_num_threads = num_threads or 0
    if provider == "dml":
        # Both are requirements of the DirectML provider.
        options.enable_mem_pattern = False
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    providers = [name] if provider == "cpu" else [name, "CPUExecutionProvider"]
    with engine_errors(f"loading {path}"):
        session = ort.InferenceSession(path, options, providers=providers)
    if name not in session.get_providers():
        raise ProviderError(
            f"{name} is installed but did not start, and ONNX Runtime fell back to "
            f"{', '.join(session.get_providers())}: check the device's driver and libraries"
        )
    session.disable_fallback()
    logger.debug("opened %s on %s", path, name)
    return session


@contextmanager
def engine_errors(action: str) -> Iterator[None]:
    """Turn ONNX Runtime's exceptions into `EngineError`."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime") or type(error) is RuntimeError:
            raise EngineError(f"{action} failed: {error}") from error
        raise
