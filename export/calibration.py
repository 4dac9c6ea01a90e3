"""Calibration: quantizes the decoder layer by layer, for what each is given on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from phi_edge.evaluation.samples import Sample
from phi_edge.image.crops import preprocess
from phi_edge.image.files import open_image
from phi_edge.text.prompt import Prompt

from .checkpoint import Checkpoint
from .decoder import LAYER_LINEARS
from .findings import CalibratedLinear, Findings
from .journal import Journal
from .layerwise import LayerwiseModel
from .prequantized import GROUP
from .recipe import CalibratedBlocks, CalibratedQuantizer, ChannelQuantizer, Floats, Recipe
from .vision_calibration import judge_vision
from .weights import named_errors

# What takes the opposite of a linear layer's input scales: a norm before it, or the last outputs
# of another linear layer.
_NORMS = {"self_attn.qkv_proj": "input_layernorm", "mlp.gate_up_proj": "post_attention_layernorm"}
_FEEDING_LAYERS = {"self_attn.o_proj": "self_attn.qkv_proj", "mlp.down_proj": "mlp.gate_up_proj"}
# Tokens of all prompts together whose inputs a layer is judged by.
_NUM_ROWS = 256
# Keys and values may grow this much above those of the samples before they are cut off.
_CACHE_MARGIN = 1.2


def calibrate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    journal: Journal,
    progress: Callable[[str, int, int], None],
) -> Findings:
    """Quantize the decoder's linear layers and `lm_head` for what they are given on prompts.

    Args:
        checkpoint: What to run and quantize.
        recipe: How; calibrated.
        prompts: Samples with their answers.
        journal: Keeps what is done, so that a calibration that was interrupted goes on.
        progress: Called before each decoder layer, and before `lm_head`, with its name, how many
            are done, and how many there are.

    Raises:
        EngineError: ONNX Runtime cannot run a layer.
        CheckpointError: Weights cannot be quantized.
    """
    calibrator = _Calibrator(checkpoint, recipe, prompts, journal)
    findings = calibrator.findings
    num_layers = checkpoint.config.num_hidden_layers
    progress("the vision tower", 0, num_layers + 1)
    findings.vision_errors = judge_vision(checkpoint, recipe, prompts, journal)
    for index in range(num_layers):
        name = f"model.layers.{index}"
        if not findings.restore_layer(name):
            progress(name, index, num_layers + 1)
            calibrator.calibrate_layer(index)
    if not findings.restore_layer("lm_head"):
        progress("lm_head", num_layers, num_layers + 1)
        calibrator.calibrate_head()
    return findings


class _Calibrator:
    """Quantizes layers, and adds them to its findings."""

    def __init__(
        self, checkpoint: Checkpoint, recipe: Recipe, prompts: Sequence[Prompt], journal: Journal
    ) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self.findings = Findings(journal)
        self._model = LayerwiseModel(checkpoint, prompts, journal)
        num_tokens = sum(prompt.num_tokens for prompt in prompts)
        self._row_step = -(-num_tokens // _NUM_ROWS)

    def calibrate_layer(self, index: int) -> None:
        """Quantize the linear layers of a decoder layer, and find the scales of its cache."""
        layer = f"model.layers.{index}"
        linears = {
            name: linear
            for name in LAYER_LINEARS
            if (linear := self._linear(GROUP, f"{layer}.{name}"))
        }
        largest: dict[str, Floats] = {}

        def see(name: str, values: Floats) -> None:
            if name in linears:
                linears[name].see(values, self._row_step)
            elif name in ("key", "value"):
                largest[name] = np.maximum(largest.get(name, 0), np.abs(values).max(axis=1))

        self._model.run_layer(index, see)
        divisors = self._scale(layer, linears, largest["value"])
        # Each linear layer is let go of before the next one is quantized.
        found = dict(self._quantize(linears.pop(name)) for name in list(linears))
        keys, values = (_cache_scales(largest[part]) for part in ("key", "value"))
        self.findings.keep_layer(layer, found, divisors, (keys, values))

    def _scale(
        self, layer: str, linears: Mapping[str, _Linear], largest_values: Floats
    ) -> dict[str, Floats]:
        """Multiply linear layers by input scales, and divide what comes before them.

        Args:
            layer: Name of the decoder layer.
            linears: Its linear layers.
            largest_values: [kv_heads, head_size], of what it caches; divided too.

        Returns:
            Norm -> what it has to be divided by.
        """
        config = self._checkpoint.config
        is_grouped = config.num_key_value_heads < config.num_attention_heads
        divisors: dict[str, Floats] = {}
        for name, linear in linears.items():
            if name == "self_attn.o_proj" and is_grouped:
                continue  # several heads read the same values
            scales = linear.scale_inputs()
            if scales is None:
                continue
            if name in _NORMS:
                divisors[f"{layer}.{_NORMS[name]}.weight"] = scales
                continue
            linears[_FEEDING_LAYERS[name]].weight[-len(scales) :] /= scales[:, None]
            if name == "self_attn.o_proj":
                largest_values /= scales.reshape(largest_values.shape)
        return divisors

    def calibrate_head(self) -> None:
        """Quantize `lm_head`."""
        linear = self._linear("lm_head", "lm_head")
        if linear is None:
            return
        for normed in self._model.normed():
            linear.see(normed, self._row_step)
        scales = linear.scale_inputs()
        divisors = {} if scales is None else {"model.norm.weight": scales}
        self.findings.keep_layer("lm_head", dict([self._quantize(linear)]), divisors)

    def _linear(self, group: str, name: str) -> _Linear | None:
        """Make a linear layer that is to be calibrated; None for another."""
        quantizer = self._recipe.quantizer(group, name)
        if not isinstance(quantizer, CalibratedQuantizer):
            return None
        if group == GROUP and self._checkpoint.layout:
            return None  # it is quantized already
        prefill = self._recipe.prefill if group == GROUP else None
        return _Linear(self._checkpoint, quantizer, prefill, name)

    def _quantize(self, linear: _Linear) -> tuple[str, CalibratedLinear]:
        """Quantize a linear layer, keep its weights, and return its name and the facts."""
        return linear.name, self.findings.keep_weights(linear.name, linear.quantize())


def _cache_scales(largest: Floats) -> Floats:
    """Return the scales with which int8 numbers hold values up to `largest` and a margin."""
    scales: Floats = largest * np.float32(_CACHE_MARGIN / 127)
    scales[scales == 0] = 1
    return scales


class _Linear:
    """A linear layer, and what it was seen to get.

    Attributes:
        name: Official name.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        quantizer: CalibratedQuantizer,
        prefill: ChannelQuantizer | None,
        name: str,
    ) -> None:
        self.name = name
        self._checkpoint = checkpoint
        self._quantizer = quantizer
        self._prefill = prefill
        self._moments = np.zeros((), np.float32)
        self._rows: list[Floats] = []

    @cached_property
    def weight(self) -> Floats:
        """float32 [out_features, in_features]."""
        return self._checkpoint.read(f"{self.name}.weight").astype(np.float32)

    def see(self, inputs: Floats, step: int) -> None:
        """Note inputs [tokens, in_features]; keep every `step`-th row, and so the first.

        The first token is often like no other.
        """
        self._moments = self._moments + inputs.T @ inputs
        self._rows.append(inputs[::step].copy())

    def scale_inputs(self) -> Floats | None:
        """Multiply the columns by what makes them easier to quantize, if anything does.

        Returns:
            float32 [in_features]: what the inputs have to be divided by.
        """
        rows = np.concatenate(self._rows)
        with named_errors([f"{self.name}.weight"]):
            scales = self._quantizer.input_scales(self.weight, rows, self._prefill)
        if scales is not None:
            np.multiply(self.weight, scales, out=self.weight)
            self._rows = [rows / scales]
            self._moments = self._moments / scales / scales[:, None]
        return scales

    def quantize(self) -> CalibratedBlocks:
        """Quantize the layer for the inputs that it was seen to get."""
        with named_errors([f"{self.name}.weight"]):
            return self._quantizer.calibrate(
                self.weight, self._moments, np.concatenate(self._rows), self._prefill
            )


def encode_samples(checkpoint: Checkpoint, samples: Iterable[Sample]) -> list[Prompt]:
    """Encode samples as the runtime would, each with its answer.

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
