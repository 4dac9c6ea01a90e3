"""Calibration: what each linear layer of the decoder is given to multiply.

The checkpoint itself is run on samples in float32, one decoder layer at a time, each in a graph
of its own. Between two layers the activations of all samples stand on disk, so memory holds one
layer, whatever the size of the model.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from phi_edge import package
from phi_edge.image import preprocess
from phi_edge.image_file import open_image
from phi_edge.prompt import Prompt
from phi_edge.samples import Sample
from phi_edge.session import engine_errors, open_session

from .checkpoint import Checkpoint
from .decoder import LAYER_LINEARS, build_layer
from .embedding import build_embedding
from .journal import Journal
from .vision import build_vision
from .weights import Weights

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]


class Calibration:
    """Gives the second moments of linear layers' inputs, layer after layer."""

    def __init__(self, checkpoint: Checkpoint, prompts: Sequence[Prompt], journal: Journal) -> None:
        """Take the samples; nothing is run yet."""
        self._checkpoint = checkpoint
        self._prompts = prompts
        self._journal = journal
        self._weights = Weights(checkpoint, "float32", {})
        self._moments: dict[str, Floats] = {}

    def moments(self, name: str) -> Floats:
        """The sum of `outer(x, x)` over all inputs `x` that a linear layer is given.

        Layers are asked for in their order, each once; asking for the first of a decoder layer
        runs that layer.

        Args:
            name: Official name of a linear layer of the decoder, or "lm_head".

        Returns:
            float32 [in_features, in_features].

        Raises:
            EngineError: ONNX Runtime cannot run the layer.
        """
        if name not in self._moments:
            self._moments.clear()
            if name == "lm_head":
                self._see_normed()
            else:
                self._run_layer(int(name.split(".")[2]))
        return self._moments.pop(name)

    def _see(self, name: str, inputs: Floats) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1])
        self._moments[name] = self._moments.get(name, np.float32(0)) + rows.T @ rows

    def _run_layer(self, index: int) -> None:
        config = self._checkpoint.config
        activations = self._activations(index)
        logger.info("calibrating layer %d of %d", index + 1, config.num_hidden_layers)
        empty = np.empty((1, config.num_key_value_heads, 0, config.head_size), np.float32)
        outputs: list[Floats] = []
        with self._session(build_layer(config, self._weights, index)) as session:
            names = [value.name for value in session.get_inputs()]
            for x, residual in zip(activations[::2], activations[1::2], strict=True):
                mask = np.ones(x.shape[:2], np.int64)
                feeds = dict(zip(names, (x, residual, mask, empty, empty), strict=True))
                with engine_errors(f"running layer {index}"):
                    *passed_on, qkv, attended, gate_up, inner = session.run(None, feeds)
                outputs += passed_on
                seen = (qkv, attended, gate_up, inner)
                for linear, inputs in zip(LAYER_LINEARS, seen, strict=True):
                    self._see(f"model.layers.{index}.{linear}", inputs)
        self._journal.store(f"layer-{index + 1}", outputs)
        # The one before is kept until this layer's weights are all quantized.
        self._journal.remove(f"layer-{index - 1}")

    def _activations(self, index: int) -> list[Floats]:
        """What a layer is given: for each sample, `x` and `residual` [1, tokens, hidden_size]."""
        stored = self._journal.load(f"layer-{index}", 2 * len(self._prompts))
        if stored is None:
            if index == 0:
                self._journal.store("layer-0", self._embed())
            else:
                self._run_layer(index - 1)
                self._moments.clear()
            return self._activations(index)
        return [np.asarray(array, np.float32) for array in stored]

    def _embed(self) -> list[Floats]:
        """Embeddings of all prompts, with image features in their slots, and no residual."""
        config = self._checkpoint.config
        features = [
            [np.empty((0, config.hidden_size), np.float32)] for _ in range(len(self._prompts))
        ]
        with self._session(build_vision(config, self._weights)) as session:
            for prompt, of_prompt in zip(self._prompts, features, strict=True):
                for crops in prompt.images:
                    feeds = {
                        package.PIXEL_VALUES: crops.pixel_values[None],
                        package.IMAGE_SIZES: np.array([crops.image_size], np.int64),
                    }
                    with engine_errors("encoding an image"):
                        of_prompt.extend(session.run([package.IMAGE_FEATURES], feeds))
        embedded: list[Floats] = []
        with self._session(build_embedding(config, self._weights)) as session:
            for prompt, of_prompt in zip(self._prompts, features, strict=True):
                feeds = {
                    package.INPUT_IDS: prompt.input_ids[None],
                    package.IMAGE_FEATURES: np.concatenate(of_prompt),
                }
                with engine_errors("embedding a prompt"):
                    (embeds,) = session.run([package.INPUTS_EMBEDS], feeds)
                embedded += [embeds, np.zeros_like(embeds)]
        return embedded

    def _see_normed(self) -> None:
        """The input of lm_head: the sum of both activations after the last layer, RMS-normed."""
        config = self._checkpoint.config
        weight = self._checkpoint.read("model.norm.weight").astype(np.float32)
        activations = self._activations(config.num_hidden_layers)
        for x, residual in zip(activations[::2], activations[1::2], strict=True):
            total = x + residual
            scale = np.sqrt(np.mean(total**2, axis=-1, keepdims=True) + config.rms_norm_eps)
            self._see("lm_head", total / scale * weight)

    @contextmanager
    def _session(self, graph: ir.Model) -> Iterator[Any]:
        """A session of a graph, whose weights stand on disk while it is open."""
        folder = self._journal.folder / "graph"
        folder.mkdir(exist_ok=True)
        try:
            ir.save(graph, folder / "graph.onnx", external_data="graph.data")
            yield open_session(folder / "graph.onnx", "cpu")
        finally:
            shutil.rmtree(folder)


def encode_samples(checkpoint: Checkpoint, samples: Iterable[Sample]) -> list[Prompt]:
    """Samples as the checkpoint's runtime would meet them, each with its answer.

    Raises:
        CheckpointError: The checkpoint's tokenizer or image settings cannot be read.
        ImageError: An image cannot be read.
    """
    tokenizer = checkpoint.read_tokenizer()
    settings = checkpoint.image_settings()
    prompts = []
    for sample in samples:
        crops = [preprocess(open_image(path), *settings) for path in sample.images]
        prompt, answer = sample.encode(tokenizer, crops)
        prompts.append(Prompt(np.concatenate([prompt.input_ids, answer]), prompt.images))
    return prompts
