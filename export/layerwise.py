"""Runs a checkpoint itself, in float32, on prompts that are known beforehand.

Each decoder layer is a graph of its own, and between two layers the activations of all prompts
stand on disk: memory holds one layer, whatever the size of the model.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from phi_edge import package
from phi_edge.engine.session import engine_errors, open_session
from phi_edge.engine.vision import encode_image
from phi_edge.text.prompt import Prompt

from .checkpoint import Checkpoint
from .decoder import LAYER_LINEARS, build_layer
from .embedding import build_embedding
from .journal import Journal
from .recipe import Floats
from .vision import build_vision
from .weights import Weights

logger = logging.getLogger(__name__)

See = Callable[[str, Floats], None]


class LayerwiseModel:
    """A checkpoint and the prompts that it is run on."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompts: Sequence[Prompt],
        journal: Journal,
        features: dict[bytes, Floats] | None = None,
    ) -> None:
        """Take them; nothing is run yet.

        Args:
            checkpoint: What to run.
            prompts: On what.
            journal: Where activations are kept; what is there already is not computed again.
            features: Image features that are known, by the digest of the crops; what is computed
                is added.
        """
        self._checkpoint = checkpoint
        self._prompts = prompts
        self._journal = journal
        self._features = {} if features is None else features
        self._weights = Weights(checkpoint, "float32")

    def run_layer(self, index: int, see: See | None = None) -> None:
        """Run a decoder layer, and those before it that were not run yet.

        Args:
            index: The layer.
            see: Is shown, for each prompt, the inputs [tokens, in_features] of every one of
                `LAYER_LINEARS`, and what the layer caches as "key" and "value" [kv_heads, tokens,
                head_size].

        Raises:
            EngineError: ONNX Runtime cannot run the layer.
        """
        config = self._checkpoint.config
        activations = self._activations(index)
        logger.info("running layer %d of %d", index + 1, config.num_hidden_layers)
        empty = np.empty((1, config.num_key_value_heads, 0, config.head_size), np.float32)
        outputs: list[Floats] = []
        with open_graph(build_layer(config, self._weights, index), self._journal) as session:
            names = [value.name for value in session.get_inputs()]
            for x, residual in zip(activations[::2], activations[1::2], strict=True):
                mask = np.ones(x.shape[:2], np.int64)
                feeds = dict(zip(names, (x, residual, mask, empty, empty), strict=True))
                with engine_errors(f"running layer {index}"):
                    next_x, next_residual, *seen = session.run(None, feeds)
                outputs += [next_x, next_residual]
                for name, (values,) in zip(("key", "value", *LAYER_LINEARS), seen, strict=True):
                    if see:
                        see(name, values)
        self._store(index + 1, outputs)
        # The one before is kept until this layer is done with.
        self._journal.remove(f"layer-{index - 1}")

    def normed(self) -> Iterator[Floats]:
        """Compute what `lm_head` is given for each prompt: float32 [tokens, hidden_size]."""
        config = self._checkpoint.config
        weight = self._checkpoint.read("model.norm.weight").astype(np.float32)
        activations = self._activations(config.num_hidden_layers)
        for (x,), (residual,) in zip(activations[::2], activations[1::2], strict=True):
            total = x + residual
            scale = np.sqrt(np.mean(total**2, axis=-1, keepdims=True) + config.rms_norm_eps)
            yield total / scale * weight

    def image_features(self) -> list[list[Floats]]:
        """Compute for each prompt the features [num_tokens, hidden_size] of its images."""
        images = {crops.digest: crops for prompt in self._prompts for crops in prompt.images}
        unknown = images.keys() - self._features.keys()
        if unknown:
            graph = build_vision(self._checkpoint.config, self._weights)
            with open_graph(graph, self._journal) as session:
                for digest in unknown:
                    self._features[digest] = encode_image(session, images[digest])
        return [
            [self._features[crops.digest] for crops in prompt.images] for prompt in self._prompts
        ]

    def _activations(self, index: int) -> list[Floats]:
        """Return what a layer is given: `x` and `residual` [1, tokens, hidden_size] by prompt."""
        stored = self._journal.load(f"layer-{index}")
        if stored is None:
            if index == 0:
                self._store(0, self._embed())
            else:
                self.run_layer(index - 1)
            return self._activations(index)
        arrays = stored.arrays
        return [np.asarray(arrays[str(at)], np.float32) for at in range(len(arrays))]

    def _store(self, index: int, activations: Sequence[Floats]) -> None:
        named = {str(at): array for at, array in enumerate(activations)}
        self._journal.store(f"layer-{index}", named)

    def _embed(self) -> list[Floats]:
        """Embed all prompts, with image features in their slots, and a residual of zeros."""
        config = self._checkpoint.config
        none = np.empty((0, config.hidden_size), np.float32)
        features = self.image_features()
        embedded: list[Floats] = []
        with open_graph(build_embedding(config, self._weights), self._journal) as session:
            for prompt, of_prompt in zip(self._prompts, features, strict=True):
                feeds = {
                    package.INPUT_IDS: prompt.input_ids[None],
                    package.IMAGE_FEATURES: np.concatenate([none, *of_prompt]),
                }
                with engine_errors("embedding a prompt"):
                    (embeds,) = session.run([package.INPUTS_EMBEDS], feeds)
                embedded += [embeds, np.zeros_like(embeds)]
        return embedded


@contextmanager
def open_graph(graph: ir.Model, journal: Journal) -> Iterator[Any]:
    """Open a session of a graph; its weights stand in the journal meanwhile."""
    folder = journal.folder / "graph"
    folder.mkdir(exist_ok=True)
    try:
        ir.save(graph, folder / "graph.onnx", external_data="graph.data")
        yield open_session(folder / "graph.onnx", "cpu")
    finally:
        shutil.rmtree(folder)
