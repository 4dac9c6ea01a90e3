"""The vision graph: pixels -> projected image features, in the order that the decoder reads.

CLIP ViT-L/14-336 up to `hidden_states[-2]` without the class token, a 2x2 merge, the projector,
and the HD arrangement of sub crops, separators and global crop. Only real crops are computed:
padding crops, which onnxruntime-genai's image processor appends, are dropped at the door.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from phi_edge import package

from .config import Phi3VConfig, VisionConfig
from .layers import CONTRIB, Linear, Op, make_model
from .weights import Weights

_EMBED = "model.vision_embed_tokens"
_CLIP = f"{_EMBED}.img_processor.vision_model"

# CLIP's activation is x * sigmoid(1.702 x).
_QUICK_GELU_ALPHA = 1.702


class LayerNorm(nn.Module):
    """Layer norm of `x`, or of `x + residual + bias`, which it then gives too."""

    def __init__(self, vision: VisionConfig, weights: Weights, name: str) -> None:
        super().__init__()
        self.epsilon = vision.layer_norm_eps
        self.weight = weights.parameter(f"{name}.weight")
        self.bias = weights.parameter(f"{name}.bias")

    def forward(
        self,
        op: Op,
        x: ir.Value,
        residual: ir.Value | None = None,
        bias: ir.Value | None = None,
    ) -> tuple[ir.Value, ir.Value]:
        if residual is None:
            normed = op.LayerNormalization(x, self.weight, self.bias, epsilon=self.epsilon)
            return normed, x
        normed, _, _, total = op.SkipLayerNormalization(
            x,
            residual,
            self.weight,
            self.bias,
            bias,
            epsilon=self.epsilon,
            _outputs=["normed", ir.Value(name=""), ir.Value(name=""), "sum"],
            **CONTRIB,
        )
        return normed, total


class ClipEmbeddings(nn.Module):
    """Patches and the class token, with their positions."""

    def __init__(self, vision: VisionConfig, weights: Weights) -> None:
        super().__init__()
        name, width = f"{_CLIP}.embeddings", vision.hidden_size
        self.width = width
        self.num_positions = vision.grid**2 + 1
        self.patch_size = vision.patch_size
        self.patches = weights.parameter(f"{name}.patch_embedding.weight")
        self.class_token = weights.parameter(f"{name}.class_embedding", shape=(1, 1, width))
        self.positions = weights.parameter(f"{name}.position_embedding.weight")

    def forward(self, op: Op, crops: ir.Value) -> ir.Value:
        stride = [self.patch_size, self.patch_size]
        patches = op.Conv(crops, self.patches, strides=stride, kernel_shape=stride)
        patches = op.Transpose(op.Reshape(patches, [0, self.width, -1]), perm=[0, 2, 1])
        count = op.Shape(crops, start=0, end=1)
        class_token = op.Expand(self.class_token, op.Concat(count, [1, self.width], axis=0))
        return op.Add(op.Concat(class_token, patches, axis=1), self.positions)


class ClipLayer(nn.Module):
    """One encoder layer; the biases of both branches ride along with the residual."""

    def __init__(self, vision: VisionConfig, weights: Weights, name: str) -> None:
        super().__init__()
        self.width = vision.hidden_size
        self.num_heads = vision.num_attention_heads
        attention = f"{name}.self_attn"
        self.layer_norm1 = LayerNorm(vision, weights, f"{name}.layer_norm1")
        self.qkv_proj = Linear(
            weights, "vision", *(f"{attention}.{part}_proj" for part in "qkv"), bias=True
        )
        self.out_proj = Linear(weights, "vision", f"{attention}.out_proj")
        self.out_bias = weights.parameter(f"{attention}.out_proj.bias")
        self.layer_norm2 = LayerNorm(vision, weights, f"{name}.layer_norm2")
        self.fc1 = Linear(weights, "vision", f"{name}.mlp.fc1", bias=True)
        self.fc2 = Linear(weights, "vision", f"{name}.mlp.fc2")
        self.fc2_bias = weights.parameter(f"{name}.mlp.fc2.bias")

    def forward(
        self, op: Op, x: ir.Value, residual: ir.Value | None, bias: ir.Value | None
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        x, residual = self.layer_norm1(op, x, residual, bias)
        query, key, value = op.Split(self.qkv_proj(op, x), [self.width] * 3, axis=-1, _outputs=3)
        x = op.MultiHeadAttention(query, key, value, num_heads=self.num_heads, **CONTRIB)
        x = self.out_proj(op, x)
        x, residual = self.layer_norm2(op, x, residual, self.out_bias)
        x = op.QuickGelu(self.fc1(op, x), alpha=_QUICK_GELU_ALPHA, **CONTRIB)
        return self.fc2(op, x), residual, self.fc2_bias


class ClipTower(nn.Module):
    """Crops [crops, 3, 336, 336] -> features of their patches [crops, grid^2, width].

    The features are those before the last encoder layer, so that layer and `post_layernorm`
    are left out.
    """

    def __init__(self, vision: VisionConfig, weights: Weights) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(vision, weights)
        self.pre_layrnorm = LayerNorm(vision, weights, f"{_CLIP}.pre_layrnorm")
        self.layers = nn.ModuleList(
            [
                ClipLayer(vision, weights, f"{_CLIP}.encoder.layers.{i}")
                for i in range(vision.num_hidden_layers - 1)
            ]
        )

    def forward(self, op: Op, crops: ir.Value) -> ir.Value:
        x, _ = self.pre_layrnorm(op, self.embeddings(op, crops))
        residual: ir.Value | None = None
        bias: ir.Value | None = None
        for layer in self.layers:
            x, residual, bias = layer(op, x, residual, bias)
        if residual is not None:
            x = op.Add(op.Add(x, bias), residual)
        return op.Slice(x, [1], [self.embeddings.num_positions], [1])


class Projector(nn.Module):
    """Merged patches and the two separators -> rows in the decoder's hidden size."""

    def __init__(self, vision: VisionConfig, weights: Weights) -> None:
        super().__init__()
        self.vision = vision
        merged = (1, 4 * vision.hidden_size)
        self.sub_separator = weights.parameter(f"{_EMBED}.sub_GN", shape=merged)
        self.global_separator = weights.parameter(f"{_EMBED}.glb_GN", shape=merged)
        self.linear_in = Linear(weights, "vision", f"{_EMBED}.img_projection.0", bias=True)
        self.linear_out = Linear(weights, "vision", f"{_EMBED}.img_projection.2", bias=True)

    def forward(self, op: Op, patches: ir.Value) -> ir.Value:
        """Turn patches [crops, grid^2, width] into [crops * 144 + 2, hidden], separators last."""
        side, width = self.vision.grid // 2, self.vision.hidden_size
        # Neighbours of a 2x2 square become channels, in the order (dy, dx, channel).
        squares = op.Reshape(patches, [-1, side, 2, side, 2, width])
        merged = op.Reshape(op.Transpose(squares, perm=[0, 1, 3, 2, 4, 5]), [-1, 4 * width])
        rows = op.Concat(merged, self.sub_separator, self.global_separator, axis=0)
        # The erf form of GELU.
        return self.linear_out(op, op.Gelu(self.linear_in(op, rows), **CONTRIB))


class CropSelection(nn.Module):
    """Drops padding crops, and counts each image's crops."""

    def forward(
        self, op: Op, pixel_values: ir.Value, image_sizes: ir.Value, crop_size: int
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Give the real crops [crops, 3, size, size], and the images' sizes in crops.

        The sizes are heights and widths [images, 1, 1].
        """
        height, width = op.Split(op.Div(image_sizes, crop_size), [1, 1], axis=1, _outputs=2)
        num_crops = op.Add(op.Mul(height, width), 1)
        slots = op.Range(0, op.Squeeze(op.Shape(pixel_values, start=1, end=2)), 1)
        is_real = op.Reshape(op.Less(slots, num_crops), [-1])
        crops = op.Reshape(pixel_values, [-1, 3, crop_size, crop_size])
        height, width = op.Unsqueeze(height, [2]), op.Unsqueeze(width, [2])
        return op.Compress(crops, is_real, axis=0), height, width


class HdArrangement(nn.Module):
    """The rows of the projector in the order of image tokens.

    Each image gives its sub crops as one picture, line by line with a separator after each, then
    the global separator, then its global crop in the same way. The order is worked out on
    integers, for all images at once on a common grid whose unused places are dropped, so that
    the features themselves are moved once.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, op: Op, rows: ir.Value, height: ir.Value, width: ir.Value) -> ir.Value:
        """Turn rows [crops * side^2 + 2, hidden] into [tokens, hidden]."""
        side = self.side
        separator = op.Sub(op.Shape(rows, start=0, end=1), 2)
        crops_before = op.CumSum(op.Add(op.Mul(height, width), 1), 0, exclusive=1)
        first_row = op.Mul(crops_before, side * side)

        sub = self._picture(op, op.Add(first_row, side * side), height, width, separator)
        global_separator = op.Expand(
            op.Unsqueeze(op.Add(separator, 1), [0]), op.Shape(op.Squeeze(height, [2]))
        )
        one = op.Div(height, height)
        whole = self._picture(op, first_row, one, one, separator)
        order = op.Reshape(op.Concat(sub, global_separator, whole, axis=1), [-1])
        used = op.GreaterOrEqual(order, 0)
        return op.Gather(rows, op.Compress(order, used, axis=0))

    def _picture(
        self, op: Op, first_row: ir.Value, height: ir.Value, width: ir.Value, separator: ir.Value
    ) -> ir.Value:
        """Number the rows of pictures of `height` x `width` crops: [images, places].

        -1 stands where an image has no such place.
        """
        side = self.side
        y = op.Unsqueeze(op.Range(0, op.Mul(op.ReduceMax(height, keepdims=0), side), 1), [1])
        num_columns = op.Mul(op.ReduceMax(width, keepdims=0), side)
        x = op.Range(0, op.Add(num_columns, 1), 1)
        crop = op.Add(op.Mul(op.Div(y, side), width), op.Div(x, side))
        patch = op.Add(op.Mul(op.Mod(y, side), side), op.Mod(x, side))
        row = op.Add(first_row, op.Add(op.Mul(crop, side * side), patch))
        row = op.Where(op.Less(x, op.Mul(width, side)), row, -1)
        row = op.Where(op.Equal(x, num_columns), separator, row)
        row = op.Where(op.Less(y, op.Mul(height, side)), row, -1)
        return op.Flatten(row, axis=1)


class Vision(nn.Module):
    """The whole way from pixels to image features."""

    def __init__(self, config: Phi3VConfig, weights: Weights) -> None:
        super().__init__("vision")
        self.crop_size = config.vision.image_size
        self.dtype = weights.dtype
        self.selection = CropSelection()
        self.tower = ClipTower(config.vision, weights)
        self.projector = Projector(config.vision, weights)
        self.arrangement = HdArrangement(config.vision.grid // 2)

    def forward(self, op: Op, pixel_values: ir.Value, image_sizes: ir.Value) -> ir.Value:
        crops, height, width = self.selection(op, pixel_values, image_sizes, self.crop_size)
        features = self.tower(op, op.Cast(crops, to=self.dtype))
        return self.arrangement(op, self.projector(op, features), height, width)


def vision_linears(config: Phi3VConfig) -> list[tuple[str, ...]]:
    """List the linear layers in the order in which they run; some are several, stacked."""
    names: list[tuple[str, ...]] = []
    for index in range(config.vision.num_hidden_layers - 1):
        layer = f"{_CLIP}.encoder.layers.{index}"
        names.append(tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv"))
        names += [(f"{layer}.{part}",) for part in ("self_attn.out_proj", "mlp.fc1", "mlp.fc2")]
    return [*names, *((f"{_EMBED}.img_projection.{index}",) for index in (0, 2))]


def build_vision(config: Phi3VConfig, weights: Weights) -> ir.Model:
    """Build the graph.

    `pixel_values` float32 [images, crops, 3, 336, 336], `image_sizes` int64 [images, 2]
    (height, width of the padded image) -> `image_features` [num_image_tokens, hidden_size].
    The global crop stands first, then the sub crops line by line, then any padding.
    """
    size = config.vision.image_size
    return make_model(
        package.VISION,
        [
            ir.val(package.PIXEL_VALUES, ir.DataType.FLOAT, ["images", "crops", 3, size, size]),
            ir.val(package.IMAGE_SIZES, ir.DataType.INT64, ["images", 2]),
        ],
        [ir.val(package.IMAGE_FEATURES, weights.dtype, ["num_image_tokens", config.hidden_size])],
        Vision(config, weights),
    )
