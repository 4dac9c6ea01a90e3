"""ONNX Runtime sessions: the one place that imports onnxruntime and maps its errors to ours."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from phi_edge.cancel import CancelToken
from phi_edge.engine.providers import Provider, find_provider
from phi_edge.errors import EngineError, GenerationCancelled, OutOfMemoryError, ProviderError

logger = logging.getLogger(__name__)

# How ONNX Runtime, the C++ library and CUDA say that there is no memory.
_NO_MEMORY = ("failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime, with its telemetry off.

    Raises:
        ProviderError: No flavour of it is installed.
    """
    # Official builds send telemetry unless this is set before the import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ProviderError(
            f"ONNX Runtime cannot be imported ({error}). It comes in flavours that exclude each "
            "other; install one: `pip install 'phi-edge[cpu]'`, `pip install 'phi-edge[cuda]'` "
            "or `pip install 'phi-edge[directml]'`"
        ) from None
    if sys.platform == "win32":
        ort.disable_telemetry_events()  # there, the variable does not cover all of it
    return ort


def _plugin_devices(provider: Provider) -> list[Any]:
    """Find the devices of a provider whose library comes in a package of its own.

    See https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/usage.html
    """
    ort = import_onnxruntime()

    def devices() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == provider.ort_name]

    if found := devices():
        return found
    try:
        library = importlib.import_module(str(provider.plugin)).get_library_path()
        ort.register_execution_provider_library(provider.ort_name, library)
    except (ImportError, AttributeError) as error:
        raise ProviderError(
            f"{provider.ort_name} is not installed ({error}): run `{provider.install}`"
        ) from None
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises several kinds
        if "already registered" not in str(error):
            raise ProviderError(f"{provider.ort_name} cannot be registered: {error}") from None
    if found := devices():
        return found
    raise ProviderError(
        f"{provider.ort_name} is installed and found no device: install the graphics driver "
        "(on Linux with Vulkan and its loader, libvulkan1)"
    )


def open_session(
    path: Path,
    provider: str,
    num_threads: int | None = None,
    provider_options: Mapping[str, object] | None = None,
    profile_prefix: Path | None = None,
) -> Any:
    """Open a graph on a provider, which is never replaced by another behind the caller's back.

    Args:
        path: ONNX file.
        provider: A name of `PROVIDERS`.
        num_threads: Threads of the CPU kernels; None for one a physical core.
        provider_options: Options of the provider, such as `device_id` or `gpu_mem_limit` (bytes).
        profile_prefix: Write a profile to a file that begins like this.

    Raises:
        ProviderError: The provider is not available, fails to start, or has no such option.
        EngineError: The graph cannot be loaded.
    """
    record, ort = find_provider(provider), import_onnxruntime()
    available = ort.get_available_providers()
    if not record.plugin and record.ort_name not in available:
        raise ProviderError(
            f"the installed ONNX Runtime has no {record.ort_name} (it has {', '.join(available)}): "
            f"uninstall it and run `{record.install}`"
        )
    devices = _plugin_devices(record) if record.plugin else []
    given = {key: str(value) for key, value in (provider_options or {}).items()}
    if unknown := given.keys() - record.options:
        known = ", ".join(sorted(record.options)) or "none"
        raise ProviderError(
            f"{provider} has no option {', '.join(sorted(unknown))} here; it has: {known}"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; ours say what a warning would
    options.intra_op_num_threads = num_threads or 0
    if profile_prefix:
        options.log_severity_level = 4  # a graph that cannot be loaded has no profile: no news
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if record.is_sequential:
        options.enable_mem_pattern = False
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    providers: list[object] = [(record.ort_name, given), ("CPUExecutionProvider", {})]
    if devices:
        # The plugin takes one device and finds the GPU by its own options.
        options.add_provider_for_devices(devices[:1], given)
        providers = []
    with engine_errors(f"loading {path}"):
        # ONNX Runtime would print a failure and take the CPU.
        session = ort.InferenceSession(
            path, options, providers=providers[: 1 if provider == "cpu" else 2], enable_fallback=0
        )
    if record.ort_name not in session.get_providers():
        raise ProviderError(
            f"{record.ort_name} is installed but did not start, and ONNX Runtime fell back to "
            f"{', '.join(session.get_providers())}: check the device's driver and libraries"
        )
    logger.debug("opened %s on %s", path, record.ort_name)
    return session


def numpy_dtype(node: Any) -> np.dtype[Any]:
    """Find NumPy's type of a session's floating-point input or output."""
    return np.dtype({"tensor(float)": "float32", "tensor(float16)": "float16"}[node.type])


@contextmanager
def run_options(action: str, cancel: threading.Event | None) -> Iterator[Any]:
    """Make ONNX Runtime's options for the run of a graph, which setting a `CancelToken` ends.

    A run is ended between two operators, so what it has written till then is not whole. Errors
    say what the run was for, the action.

    Raises:
        GenerationCancelled: The run was ended.
        EngineError: See `engine_errors`.
    """
    options = import_onnxruntime().RunOptions()

    def stop() -> None:
        options.terminate = True

    try:
        with (
            cancel.stopping(stop) if isinstance(cancel, CancelToken) else nullcontext(),
            engine_errors(action),
        ):
            yield options
    except EngineError:
        if options.terminate:
            raise GenerationCancelled("the run was cancelled") from None
        raise


@contextmanager
def engine_errors(action: str) -> Iterator[None]:
    """Turn ONNX Runtime's exceptions into `EngineError`, and a lack of memory, too."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(f"{action} failed: out of memory {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime") or type(error) is RuntimeError:
            is_memory = any(words in str(error).lower() for words in _NO_MEMORY)
            kind = OutOfMemoryError if is_memory else EngineError
            raise kind(f"{action} failed: {error}") from error
        raise
