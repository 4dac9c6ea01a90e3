"""The embedding graph: token ids and image features -> decoder inputs.

Negative ids are image slots. They take the rows of `image_features` in sequence order.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from phi_edge import package

from .config import Phi3VConfig
from .layers import CONTRIB, Op, make_model
from .recipe import ChannelQuantizer
from .weights import Weights

_TOKENS = "model.embed_tokens"


class Embedding(nn.Module):
    """Looks tokens up, as `Gather` or `GatherBlockQuantized`, and fills in image features."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        quantizer = weights.quantizer("embedding", _TOKENS)
        if isinstance(quantizer, ChannelQuantizer):
            raise TypeError("embeddings are quantized in blocks")
        self.quantizer = quantizer
        self.scales: nn.Parameter | None = None
        self.zero_points: nn.Parameter | None = None
        if quantizer is None:
            self.weight = weights.parameter(f"{_TOKENS}.weight")
        else:
            self.weight, self.scales, self.zero_points = weights.quantized_parameters(
                [f"{_TOKENS}.weight"], quantizer, flat=True
            )

    def forward(self, op: Op, input_ids: ir.Value, image_features: ir.Value) -> ir.Value:
        token_ids = op.Max(input_ids, 0)
        if self.quantizer is None:
            embeds = op.Gather(self.weight, token_ids)
        else:
            embeds = op.GatherBlockQuantized(
                self.weight,
                token_ids,
                self.scales,
                self.zero_points,
                bits=self.quantizer.bits,
                block_size=self.quantizer.block_size,
                gather_axis=0,
                quantize_axis=1,
                **CONTRIB,
            )
        slots = op.Transpose(op.NonZero(op.Less(input_ids, 0)), perm=[1, 0])
        return op.ScatterND(embeds, slots, image_features)


def build_embedding(config: Phi3VConfig, weights: Weights) -> ir.Model:
    """Build the graph.

    `input_ids` int64 [batch, sequence], `image_features` [num_image_tokens, hidden_size] ->
    `inputs_embeds` [batch, sequence, hidden_size].
    """
    hidden = config.hidden_size
    return make_model(
        package.EMBEDDING,
        [
            ir.val(package.INPUT_IDS, ir.DataType.INT64, ["batch", "sequence"]),
            ir.val(package.IMAGE_FEATURES, weights.dtype, ["num_image_tokens", hidden]),
        ],
        [ir.val(package.INPUTS_EMBEDS, weights.dtype, ["batch", "sequence", hidden])],
        Embedding(weights),
    )
