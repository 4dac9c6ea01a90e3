"""The engine on onnxruntime-genai, for its loop in C++ and the providers that it reaches.

Image features are computed by the package's vision graph on ONNX Runtime and handed to
onnxruntime-genai as they are: in its place there stands a graph that only passes them on. So
features are kept and shared as with the other engine, and a sequence can be run again without
its pixels.
"""

from __future__ import annotations

import importlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from phi_edge import package
from phi_edge.engine.base import (
    Engine,
    Features,
    KeyValues,
    Logits,
    Run,
    check_cancelled,
)
from phi_edge.engine.probe import PROBES
from phi_edge.engine.providers import find_provider
from phi_edge.engine.session import engine_errors, import_onnxruntime
from phi_edge.engine.vision import VisionEncoder
from phi_edge.errors import EngineError, ProviderError
from phi_edge.image.crops import ImageCrops
from phi_edge.package import Package, PublishedPackage
from phi_edge.package.genai_config import check_genai_config

logger = logging.getLogger(__name__)

# Prefill runs in chunks, between which it can be cancelled.
_CHUNK_SIZE = 256

# Tokens that a cache has room for beyond the prompt. When they are used up, there has to be a
# larger cache and a new prefill.
_ROOM = 1024

_NO_KEY_VALUES = "onnxruntime-genai keeps keys and values to itself: use the engine 'onnxruntime'"


class GenaiEngine(Engine):
    """Runs a package on onnxruntime-genai."""

    def __init__(
        self,
        folder: Path,
        manifest: Package,
        provider: str,
        num_threads: int | None = None,
        provider_options: Mapping[str, object] | None = None,
    ) -> None:
        """Load the model.

        Raises:
            PackageError: Its configuration names what is not of the package.
            ProviderError: onnxruntime-genai is not installed, or its build lacks the provider.
            EngineError: The package was built for another provider, or cannot be loaded.
        """
        self.model = manifest.model
        self.og = _import_genai()
        record = find_provider(provider)
        is_bound = True
        if isinstance(manifest, PublishedPackage):
            _check_layout(folder, manifest)
            is_bound = False  # any provider may be tried
        _check_provider(self.og, provider, manifest.provider if is_bound else provider)
        check_genai_config(folder, manifest)
        with engine_errors(f"loading {folder}"):
            config = self.og.Config(str(folder))
            if not is_bound:
                config.clear_providers()
            if record.genai_adds or (provider != "cpu" and not is_bound):
                config.append_provider(record.genai_name)
            for key, value in (provider_options or {}).items():
                config.set_provider_option(record.genai_name, key, str(value))
            if num_threads:
                options = {"session_options": {"intra_op_num_threads": num_threads}}
                roles = dict.fromkeys((package.DECODER, package.EMBEDDING), options)
                config.overlay(json.dumps({"model": roles}))
            passing_on = PROBES / f"identity_{self.model.io_dtype}.onnx"
            config.add_model_data(manifest.graph_files[package.VISION], passing_on.read_bytes())
            self.genai_model: Any = self.og.Model(config)
        vision_provider = "cpu" if record.genai_adds else provider
        self.vision = VisionEncoder(folder, manifest, vision_provider, num_threads)

    @override
    def encode_image(self, crops: ImageCrops, cancel: threading.Event | None = None) -> Features:
        return self.vision.encode(crops, cancel)

    @override
    def begin(self) -> GenaiRun:
        return GenaiRun(self)

    @override
    def restore(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        key_values: Iterable[KeyValues],
        rope_limit: int,
    ) -> GenaiRun:
        raise EngineError(_NO_KEY_VALUES)

    @override
    def close(self) -> None:
        self.genai_model = None
        self.vision.close()


class GenaiRun(Run):
    """One sequence on onnxruntime-genai.

    onnxruntime-genai cannot rewind this model, add images to a sequence, or enlarge a cache, and
    keeps a sequence's keys where its RoPE factors change. In these cases the whole
    sequence is prefilled again, so the result is right and takes longer.
    """

    def __init__(self, engine: GenaiEngine) -> None:
        """Begin a sequence that has no tokens yet."""
        super().__init__(engine.model)
        self._engine = engine
        self._generator: Any = None
        self._num_features = 0  # that the generator has
        self._capacity = 0
        self._num_cached = 0
        self._logits: Logits | None = None

    @property
    @override
    def num_cached(self) -> int:
        return self._num_cached

    @property
    @override
    def num_bytes(self) -> int:
        return self._capacity * self._model.cache_bytes_per_token + self._image_features.nbytes

    @property
    @override
    def logits(self) -> Logits:
        if self._logits is None:
            self._run_pending(0)
        return np.array(self._logits)

    @property
    @override
    def room(self) -> int:
        # onnxruntime-genai gives the logits of one token a step.
        return min(1, self._model.context_length - len(self._ids))

    @override
    def fork(self, batch_size: int) -> None:
        return None  # a generator's cache cannot be copied

    @override
    def export_kv(self, num_tokens: int) -> Iterator[KeyValues]:
        raise EngineError(_NO_KEY_VALUES)

    @override
    def _forget(self) -> None:
        """Give the cache back; the next prefill is one of the whole sequence."""
        self._generator, self._logits = None, None
        self._num_cached = self._capacity = 0

    @override
    def _run_pending(self, num_earlier: int) -> Logits:
        self._logits = None
        rope_limit = self._model.rope_limit(len(self._ids))
        if (
            len(self._ids) > self._capacity
            or len(self._image_features) > self._num_features
            or self._model.rope_limit(self._num_cached) < rope_limit
        ):
            self._forget()
        try:
            with engine_errors("running onnxruntime-genai"):
                while self._num_cached < len(self._ids):
                    check_cancelled(self._cancel)
                    self._run_chunk()
                logits: Logits = np.array(self._generator.get_logits()[0, -1], np.float32)
        except EngineError:
            self._forget()  # nobody knows what is in the cache now
            raise
        self._logits = logits
        return np.array(logits[None])

    def _run_chunk(self) -> None:
        start, stop = self._num_cached, self._num_cached + _CHUNK_SIZE
        if self._generator is None:
            # Image slots take their features all at once. Nor can a sequence be cut whose first
            # tokens alone would have other RoPE factors.
            slots = [place for place, token_id in enumerate(self._ids) if token_id < 0]
            stop = max(stop, slots[-1] + 1 if slots else 0)
            if self._model.rope_limit(stop) < self._model.rope_limit(len(self._ids)):
                stop = len(self._ids)
            self._generator = self._new_generator(self._ids[:stop])
        else:
            self._generator.append_tokens(np.array(self._ids[start:stop], np.int32))
        self._num_cached = min(stop, len(self._ids))

    def _new_generator(self, token_ids: list[int]) -> Any:
        og = self._engine.og
        self._capacity = min(len(self._ids) + _ROOM, self._model.context_length)
        parameters = og.GeneratorParams(self._engine.genai_model)
        parameters.set_search_options(max_length=self._capacity, do_sample=False)
        inputs = og.NamedTensors()
        inputs[package.INPUT_IDS] = np.array([token_ids], np.int32)
        self._num_features = len(self._image_features)
        if self._num_features:
            inputs[package.PIXEL_VALUES] = self._image_features
            inputs["num_image_tokens"] = np.array([[self._num_features]], np.int64)
        generator = og.Generator(self._engine.genai_model, parameters)
        generator.set_inputs(inputs)
        return generator


def _import_genai() -> Any:
    import_onnxruntime()
    try:
        og = importlib.import_module("onnxruntime_genai")
    except ImportError as error:
        raise ProviderError(
            f"onnxruntime-genai cannot be imported ({error}): run `pip install 'phi-edge[genai]'`, "
            "or with `genai-cuda` or `genai-directml` for a GPU"
        ) from None
    og.disable_telemetry_events()
    return og


def _check_layout(folder: Path, manifest: PublishedPackage) -> None:
    """Raise if onnxruntime-genai knows no packages like this."""
    reason = ""
    if package.GENAI_CONFIG_FILE not in manifest.files:
        reason = f"it has no {package.GENAI_CONFIG_FILE}"
    elif not manifest.merges_features:
        reason = (
            "since release 0.5 it wants an embedding graph that takes image features "
            "(https://github.com/microsoft/onnxruntime-genai/issues/1055)"
        )
    if reason:
        raise EngineError(
            f"onnxruntime-genai does not run {folder}, which has the layout of {manifest.layout}: "
            f"{reason}. Use the engine 'onnxruntime'"
        )


def _check_provider(og: Any, provider: str, built_for: str) -> None:
    """Raise unless onnxruntime-genai runs a package on this provider."""
    record = find_provider(provider)
    if provider != built_for and not (built_for == "cpu" and record.genai_adds):
        raise EngineError(
            f"onnxruntime-genai runs this package on {built_for}, for which it was built, and not "
            f"on {provider}: export it with `--provider`, or use the engine 'onnxruntime'"
        )
    if provider != "cpu" and not getattr(og, f"is_{provider}_available")():
        extra = record.genai_extra
        advice = f"run `pip install 'phi-edge[{extra}]'`" if extra else "choose another provider"
        raise ProviderError(f"the installed onnxruntime-genai has no {provider}: {advice}")
