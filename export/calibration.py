"""Calibration: quantizes the decoder layer by layer, by what each layer is given on samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from phi_edge.evaluation.samples import Sample
from phi_edge.image.crops import preprocess
from phi_edge.image.files import open_image
from phi_edge.text.prompt import Prompt

from .checkpoint import Checkpoint
from .decoder import LAYER_LINEARS
from .journal import Array, Journal
from .layerwise import LayerwiseModel
from .prequantized import GROUP
from .vision_calibration import judge_vision
from .weights import ChannelQuantizer, Recipe, named_errors

Floats = npt.NDArray[np.float32]

# Norms before linear layers, which take the opposite of a layer's input scales. For the two
# other layers, rows of the layer before do.
_NORMS = {"self_attn.qkv_proj": "input_layernorm", "mlp.gate_up_proj": "post_attention_layernorm"}
_FEEDING_LAYERS = {"self_attn.o_proj": "self_attn.qkv_proj", "mlp.down_proj": "mlp.gate_up_proj"}
# Rows of its inputs that a layer is judged by, of all prompts together.
_NUM_ROWS = 256
# Keys and values may grow this much above those of the samples before they are cut off.
_CACHE_MARGIN = 1.2


@dataclasses.dataclass(frozen=True)
class CalibratedLinear:
    """How a linear layer was quantized; see `quantize.CalibratedBlocks`.

    Attributes:
        has_channels: Whether it has weights of its own for prefill.
    """

    accuracy_level: int
    error: float
    rounded_error: float
    prefill_error: float | None
    has_channels: bool


class Calibration:
    """What calibration has found. Packed weights stay in the journal.

    Attributes:
        linears: Linear layers by their official names.
        divisors: Tensor -> what it is divided by, float32, as the weights after it were multiplied.
        cache_scales: For each decoder layer, the scales of int8 keys and values, each float32
            [kv_heads, head_size].
        vision_errors: See `judge_vision`.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.linears: dict[str, CalibratedLinear] = {}
        self.divisors: dict[str, Floats] = {}
        self.cache_scales: list[tuple[Floats, Floats]] = []
        self.vision_errors: dict[str, list[float]] = {}

    def blocks(self, name: str) -> tuple[Array, Array, Array | None]:
        """Packed values, scales and zero points (None when symmetric) of a linear layer."""
        stored = self._journal.load(name) or {}
        return stored["packed"], stored["scales"], stored.get("zero_points")

    def channels(self, name: str) -> tuple[Array, Array]:
        """int8 values and scales for prefill of a linear layer that has them."""
        stored = self._journal.load(f"{name}.channels") or {}
        return stored["values"], stored["scales"]

    @property
    def without_channels(self) -> list[str]:
        """Linear layers that prompts have to run on as they are."""
        return [name for name, linear in self.linears.items() if not linear.has_channels]

    def as_dict(self) -> dict[str, Any]:
        """The facts about the linear layers, as JSON has them."""
        return {name: dataclasses.asdict(linear) for name, linear in self.linears.items()}

    def add(self, facts: Mapping[str, Array]) -> None:
        """Take what `_Calibrator` gives for a layer."""
        for key, values in facts.items():
            kind, _, name = key.partition(":")
            if kind == "linear":
                level, error, rounded_error, prefill_error, has_channels = values.tolist()
                self.linears[name] = CalibratedLinear(
                    int(level),
                    error,
                    rounded_error,
                    None if np.isnan(prefill_error) else prefill_error,
                    bool(has_channels),
                )
            elif kind == "divisor":
                self.divisors[name] = np.asarray(values, np.float32)
        if "keys" in facts:
            keys, values = (np.asarray(facts[part], np.float32) for part in ("keys", "values"))
            self.cache_scales.append((keys, values))


def calibrate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    journal: Journal,
    progress: Callable[[str, int, int], None],
) -> Calibration:
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
    calibration = Calibration(journal)
    num_layers = checkpoint.config.num_hidden_layers
    progress("the vision tower", 0, num_layers + 1)
    calibration.vision_errors = judge_vision(checkpoint, recipe, prompts, journal)
    for index in range(num_layers + 1):
        is_layer = index < num_layers
        name = f"model.layers.{index}" if is_layer else "lm_head"
        facts = journal.load(f"{name}.facts")
        if facts is None:
            progress(name, index, num_layers + 1)
            facts = calibrator.layer(index) if is_layer else calibrator.head()
            journal.store(f"{name}.facts", facts)
        calibration.add(facts)
    return calibration


class _Calibrator:
    """Quantizes layers, puts their weights into the journal, and gives the facts about them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: Recipe,
        prompts: Sequence[Prompt],
        journal: Journal,
    ) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._journal = journal
        self._model = LayerwiseModel(checkpoint, prompts, journal)
        num_tokens = sum(prompt.num_tokens for prompt in prompts)
        self._row_step = -(-num_tokens // _NUM_ROWS)

    def layer(self, index: int) -> dict[str, Array]:
        """A decoder layer with its four linear layers."""
        linears = {
            name: linear
            for name in LAYER_LINEARS
            if (linear := self._linear("decoder", f"model.layers.{index}.{name}"))
        }
        largest: dict[str, Floats] = {}

        def see(name: str, values: Floats) -> None:
            if name in linears:
                linears[name].see(values, self._row_step)
            elif name in ("key", "value"):
                largest[name] = np.maximum(largest.get(name, 0), np.abs(values).max(axis=1))

        self._model.run_layer(index, see)
        facts = self._scale(index, linears, largest["value"])
        for name in list(linears):
            facts |= self._finish(linears.pop(name))
        for part in ("key", "value"):
            scales = largest[part] * np.float32(_CACHE_MARGIN / 127)
            facts[f"{part}s"] = np.where(scales == 0, np.float32(1), scales)
        return facts

    def _scale(
        self, index: int, linears: Mapping[str, _Linear], largest_values: Floats
    ) -> dict[str, Array]:
        """Multiply linear layers by input scales, and divide what comes before them."""
        config = self._checkpoint.config
        is_grouped = config.num_key_value_heads < config.num_attention_heads
        divisors: dict[str, Array] = {}
        for name, linear in linears.items():
            if name == "self_attn.o_proj" and is_grouped:
                continue  # several heads read the same values
            scales = linear.scale_inputs()
            if scales is None:
                continue
            if name in _NORMS:
                divisors[f"divisor:model.layers.{index}.{_NORMS[name]}.weight"] = scales
                continue
            linears[_FEEDING_LAYERS[name]].weight[-len(scales) :] /= scales[:, None]
            if name == "self_attn.o_proj":
                largest_values /= scales.reshape(largest_values.shape)
        return divisors

    def head(self) -> dict[str, Array]:
        """`lm_head`."""
        linear = self._linear("lm_head", "lm_head")
        if linear is None:
            return {}
        for normed in self._model.normed():
            linear.see(normed, self._row_step)
        scales = linear.scale_inputs()
        facts: dict[str, Array] = {} if scales is None else {"divisor:model.norm.weight": scales}
        return facts | self._finish(linear)

    def _linear(self, group: str, name: str) -> _Linear | None:
        """A linear layer that is to be calibrated; None for another."""
        quantizer = self._recipe.quantizer(group, name)
        if (
            quantizer is None
            or isinstance(quantizer, ChannelQuantizer)
            or not quantizer.is_calibrated
        ):
            return None
        if group == GROUP and self._checkpoint.layout:
            return None  # it is quantized already
        prefill = self._recipe.prefill if group == GROUP else None
        return _Linear(self._checkpoint, quantizer, prefill, name)

    def _finish(self, linear: _Linear) -> dict[str, Array]:
        found = linear.quantize()
        self._journal.store(linear.name, _arrays(found.blocks))
        if found.channels:
            self._journal.store(f"{linear.name}.channels", _arrays(found.channels))
        facts = (
            found.accuracy_level,
            found.error,
            found.rounded_error,
            np.nan if found.prefill_error is None else found.prefill_error,
            found.channels is not None,
        )
        return {f"linear:{linear.name}": np.array(facts, np.float64)}


def _arrays(quantized: Any) -> dict[str, Array]:
    """The arrays of a named tuple, by their names."""
    return {name: array for name, array in quantized._asdict().items() if array is not None}


class _Linear:
    """A linear layer, and what it was seen to get.

    Attributes:
        name: Official name.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        quantizer: Any,
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
        """Note inputs [tokens, in_features], and keep one row of each `step`, the first too: what
        is like no other token is often the first.
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
            scales: Floats | None = self._quantizer.input_scales(self.weight, rows, self._prefill)
        if scales is not None:
            np.multiply(self.weight, scales, out=self.weight)
            self._rows = [rows / scales]
            self._moments = self._moments / scales / scales[:, None]
        return scales

    def quantize(self) -> Any:
        """See `quantize.CalibratedQuantizer.calibrate`."""
        with named_errors([f"{self.name}.weight"]):
            return self._quantizer.calibrate(
                self.weight, self._moments, np.concatenate(self._rows), self._prefill
            )


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
