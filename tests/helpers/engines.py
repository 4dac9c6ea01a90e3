"""Engines that remember what they were asked to do."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from phi_edge.engine.base import Features, Logits
from phi_edge.engine.ort import OrtEngine
from phi_edge.engine.ort_sequence import OrtRun


class WatchedEngine(OrtEngine):
    """Counts its work.

    Attributes:
        num_encoded: Images.
        num_begun: Sequences of which nothing was known.
        steps: Sequences and new tokens of each step.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.num_encoded = self.num_begun = 0
        self.steps: list[tuple[int, int]] = []

    @override
    def encode_image(self, *args: Any) -> Features:
        self.num_encoded += 1
        return super().encode_image(*args)

    @override
    def begin(self) -> OrtRun:
        self.num_begun += 1
        return super().begin()

    @override
    def step(self, graph: Any, input_ids: Any, *args: Any) -> Logits:
        self.steps.append(input_ids.shape)
        return super().step(graph, input_ids, *args)
