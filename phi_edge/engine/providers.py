"""The execution providers: all that is particular to one stands in its record here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from phi_edge.errors import ProviderError

Precision = Literal["int4", "fp16", "fp32"]


@dataclasses.dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime.

    Attributes:
        ort_name: ONNX Runtime's name for it.
        distribution: Package of the Python package index that brings it.
        install: Command that installs it.
        plugin: Module that brings its library, where it is not part of ONNX Runtime.
        options: Options that a session may be given.
        is_sequential: Its sessions have to run one operator after another, without memory
            patterns.
        memory: Where it wants tensors, as `OrtValue` names it.
        chunk_size: Tokens of a prompt that are prefilled at once.
        probe: Which of the probe graphs it has to run.
        precisions: Those of the packages that are built for it; empty if none are.
        float_dtype: Floating-point type of an int4 package for it.
        has_int8_kernels: It multiplies in 8 bits, and reads an int8 key/value cache.
        fuses_rotary: Its attention operator applies the rotary embedding itself.
        genai_name: onnxruntime-genai's name for it.
        genai_extra: Extra that installs onnxruntime-genai with it; None where there is none.
        genai_adds: onnxruntime-genai adds it to packages that are built for the CPU.
    """

    ort_name: str
    distribution: str
    install: str
    plugin: str | None = None
    options: frozenset[str] = frozenset()
    is_sequential: bool = False
    memory: str = "cpu"
    chunk_size: int = 1024
    probe: str = "float32"
    precisions: tuple[Precision, ...] = ()
    float_dtype: Literal["float32", "float16"] = "float32"
    has_int8_kernels: bool = False
    fuses_rotary: bool = True
    genai_name: str = ""
    genai_extra: str | None = None
    genai_adds: bool = False


# Options are those of https://onnxruntime.ai/docs/execution-providers/ that matter to a session
# of ours. What changes results or needs pointers is left out. Kernels are those of
# https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md: attention on CUDA has
# none in float32, and the 8-bit ones of GPUs differ between providers and releases.
PROVIDERS: Mapping[str, Provider] = {
    "cpu": Provider(
        "CPUExecutionProvider",
        "onnxruntime",
        "pip install 'phi-edge[cpu]'",
        # So many keep the activations in the processor's cache; a chunk reads the whole key/value
        # cache of earlier ones.
        chunk_size=256,
        precisions=("int4", "fp16", "fp32"),
        has_int8_kernels=True,
        genai_name="cpu",
        genai_extra="genai",
    ),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "onnxruntime-gpu",
        "pip install 'phi-edge[cuda]'",
        options=frozenset(
            {"device_id", "gpu_mem_limit", "arena_extend_strategy", "cudnn_conv_algo_search"}
            | {"cudnn_conv_use_max_workspace", "do_copy_in_default_stream", "use_tf32"}
        ),
        memory="cuda",
        probe="float16",
        precisions=("int4", "fp16"),
        float_dtype="float16",
        genai_name="cuda",
        genai_extra="genai-cuda",
    ),
    "dml": Provider(
        "DmlExecutionProvider",
        "onnxruntime-directml",
        "pip install 'phi-edge[directml]'",
        options=frozenset({"device_id", "performance_preference", "device_filter"}),
        is_sequential=True,
        memory="dml",
        probe="float16_unfused",
        precisions=("int4", "fp16", "fp32"),
        float_dtype="float16",
        fuses_rotary=False,
        genai_name="dml",
        genai_extra="genai-directml",
    ),
    "webgpu": Provider(
        "WebGpuExecutionProvider",
        "onnxruntime-ep-webgpu",
        "pip install 'phi-edge[cpu]' onnxruntime-ep-webgpu",
        plugin="onnxruntime_ep_webgpu",
        options=frozenset({"adapterIndex", "preferredLayout", "dawnBackendType"}),
        probe="float16",
        genai_name="webgpu",
        genai_adds=True,
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "onnxruntime-openvino",
        "pip install onnxruntime-openvino",
        options=frozenset({"device_type", "precision", "num_of_threads", "cache_dir"}),
        genai_name="OpenVINO",
        genai_adds=True,
    ),
}

# Those that packages are built for.
TARGETS = tuple(name for name, provider in PROVIDERS.items() if provider.precisions)


def find_provider(name: str) -> Provider:
    """Look a provider up.

    Raises:
        ProviderError: There is no such provider.
    """
    if name not in PROVIDERS:
        raise ProviderError(f"there is no provider {name!r}: choose one of {', '.join(PROVIDERS)}")
    return PROVIDERS[name]
