"""The engine on ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from phi_edge.engine.base import Engine, Features, KeyValues, check_tokens
from phi_edge.engine.ort_sequence import OrtRun
from phi_edge.engine.ort_step import OrtGraphs
from phi_edge.image.crops import ImageCrops


class OrtEngine(OrtGraphs, Engine):
    """Runs a package's graphs."""

    @override
    def encode_image(self, crops: ImageCrops, cancel: threading.Event | None = None) -> Features:
        return self.vision.encode(crops, cancel)

    @override
    def begin(self) -> OrtRun:
        return OrtRun(self)

    @override
    def restore(
        self,
        input_ids: npt.NDArray[np.int64],
        image_features: Features,
        key_values: Iterable[KeyValues],
        rope_limit: int,
    ) -> OrtRun:
        check_tokens(self.model, len(input_ids), input_ids, image_features)
        run = OrtRun(self)
        run.import_kv(input_ids, image_features, key_values, rope_limit)
        return run
