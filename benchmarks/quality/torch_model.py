"""Phi-3.5-vision's architecture in torch, for training small models of it.

Parameters have the official names, so that a state dict is a checkpoint. Only images of one
square crop are covered, for which the global crop and the sub crop are the same pixels, so the
tower runs once for both.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as f

# Needs the extra `train`.

Rotation = tuple[Tensor, Tensor]


class ClipAttention(nn.Module):
    """Self-attention of the tower."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[crops, patches, width] -> the same."""
        query, key, value = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = f.scaled_dot_product_attention(query, key, value)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class ClipLayer(nn.Module):
    """Encoder layer of the tower."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, inner = vision["hidden_size"], vision["intermediate_size"]
        self.layer_norm1 = nn.LayerNorm(width, vision["layer_norm_eps"])
        self.self_attn = ClipAttention(width, vision["num_attention_heads"])
        self.layer_norm2 = nn.LayerNorm(width, vision["layer_norm_eps"])
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        """[crops, patches, width] -> the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        inner = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](inner * torch.sigmoid(1.702 * inner))


class ClipEmbeddings(nn.Module):
    """Patches and class token with positions."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, patch = vision["hidden_size"], vision["patch_size"]
        num_patches = (vision["image_size"] // patch) ** 2
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(num_patches + 1, width)

    @torch.no_grad()
    def start_positions(self) -> None:
        """Waves along both axes to begin with: neighbours find each other from the first step."""
        table = self.position_embedding.weight
        side = math.isqrt(len(table) - 1)
        quarter = table.shape[1] // 4
        # From two patches' distance to twice the side.
        lengths = torch.logspace(math.log2(4), math.log2(4 * side), quarter, 2)
        angles = 2 * math.pi * torch.arange(side)[:, None] / lengths
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        table[0] = 0
        table[1:, : 2 * quarter] = waves.repeat_interleave(side, 0)
        table[1:, 2 * quarter :] = waves.repeat(side, 1)

    def forward(self, crops: Tensor) -> Tensor:
        """[crops, 3, 336, 336] -> [crops, 577, width]."""
        patches = self.patch_embedding(crops).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(crops), 1, -1)
        return torch.cat([class_token, patches], 1) + self.position_embedding.weight


class ClipTower(nn.Module):
    """The tower, up to the output of the layer before the last, without the class token."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, epsilon = vision["hidden_size"], vision["layer_norm_eps"]
        self.embeddings = ClipEmbeddings(vision)
        self.pre_layrnorm = nn.LayerNorm(width, epsilon)
        layers = nn.ModuleList(ClipLayer(vision) for _ in range(vision["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(width, epsilon)

    def forward(self, crops: Tensor) -> Tensor:
        """[crops, 3, 336, 336] -> [crops, 576, width]."""
        x = self.pre_layrnorm(self.embeddings(crops))
        layers = self.encoder["layers"]
        for index in range(len(layers) - 1):
            x = layers[index](x)
        return x[:, 1:]


class ImageEmbedding(nn.Module):
    """Images -> rows in the decoder's hidden size, in the order of image tokens."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        vision, hidden = config["img_processor"]["vision_config"], config["hidden_size"]
        merged = 4 * vision["hidden_size"]
        self.side = vision["image_size"] // vision["patch_size"] // 2
        self.img_processor = nn.ModuleDict({"vision_model": ClipTower(vision)})
        self.sub_GN = nn.Parameter(torch.randn(1, 1, 1, merged) * 0.02)
        self.glb_GN = nn.Parameter(torch.randn(1, 1, merged) * 0.02)
        self.img_projection = nn.Sequential(
            nn.Linear(merged, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )

    def encode(self, images: Tensor) -> Tensor:
        """[images, 3, 336, 336] -> the tower's [images, 576, width]."""
        patches: Tensor = self.img_processor["vision_model"](images)
        return patches

    def forward(self, patches: Tensor) -> Tensor:
        """[images, 576, width] -> [images, 313, hidden]."""
        count, side = len(patches), self.side
        squares = patches.view(count, side, 2, side, 2, -1).permute(0, 1, 3, 2, 4, 5)
        merged = squares.reshape(count, side, side, -1)
        row_ends = self.sub_GN.expand(count, side, 1, -1)
        picture = torch.cat([merged, row_ends], 2).flatten(1, 2)
        # The sub crop and the global crop are the same picture.
        middle = self.glb_GN.expand(count, 1, -1)
        return self.img_projection(torch.cat([picture, middle, picture], 1))


class RMSNorm(nn.Module):
    """Root mean square norm."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return f.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Attention(nn.Module):
    """Self-attention with rotary positions."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.num_heads = config["num_attention_heads"]
        self.qkv_proj = nn.Linear(hidden, 3 * hidden, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, visible: Tensor) -> Tensor:
        """[batch, tokens, hidden] -> the same."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv_proj(x).chunk(3, -1)
        )
        query, key = (_rotate(part, *rotation) for part in (query, key))
        attended = f.scaled_dot_product_attention(query, key, value, visible)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_up_proj = nn.Linear(hidden, 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, hidden] -> the same."""
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(f.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Attention and MLP, each after a norm."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, epsilon = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = RMSNorm(hidden, epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(hidden, epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: Rotation, visible: Tensor) -> Tensor:
        """[batch, tokens, hidden] -> the same."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, visible)
        return x + self.mlp(self.post_attention_layernorm(x))


class Phi3V(nn.Module):
    """The whole model; sequences stay below the length at which RoPE factors change."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        hidden = config["hidden_size"]
        layers = nn.ModuleList(DecoderLayer(config) for _ in range(config["num_hidden_layers"]))
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config["vocab_size"], hidden),
                "vision_embed_tokens": ImageEmbedding(config),
                "layers": layers,
                "norm": RMSNorm(hidden, config["rms_norm_eps"]),
            }
        )
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.apply(_initialise)

    def forward(
        self, input_ids: Tensor, positions: Tensor, segments: Tensor, patches: Tensor
    ) -> Tensor:
        """Hidden states after the last norm.

        Args:
            input_ids: int64 [batch, tokens]; negative ids are image slots.
            positions: int64 [batch, tokens], for the rotary embedding.
            segments: int64 [batch, tokens]. A token sees those before it of its own segment and
                of segment 0.
            patches: float32 [images, 576, width], the tower's output, in the order of the slots.

        Returns:
            float32 [batch, tokens, hidden].
        """
        x = self.model["embed_tokens"](input_ids.clamp(min=0))
        if len(patches):
            features = self.model["vision_embed_tokens"](patches).flatten(0, 1)
            x = x.masked_scatter((input_ids < 0).unsqueeze(-1), features)
        of_segment = segments[:, None, :] == segments[:, :, None]
        visible = (of_segment | (segments[:, None, :] == 0)).tril().unsqueeze(1)
        rotation = self._rotation(positions)
        for layer in self.model["layers"]:
            x = layer(x, rotation, visible)
        return self.model["norm"](x)

    def _rotation(self, positions: Tensor) -> Rotation:
        config = self.config
        head_size = config["hidden_size"] // config["num_attention_heads"]
        factors = torch.tensor(config["rope_scaling"]["short_factor"])
        exponents = torch.arange(0, head_size, 2) / head_size
        frequencies = 1 / (factors * config["rope_theta"] ** exponents)
        angles = positions[:, None, :, None] * frequencies
        original = config["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original))
        return angles.cos() * factor, angles.sin() * factor


def _initialise(module: nn.Module) -> None:
    if isinstance(module, ClipEmbeddings):
        module.start_positions()  # after its table, which comes first
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
        fan_in = module.weight[0].numel()
        is_table = isinstance(module, nn.Embedding)
        nn.init.normal_(module.weight, std=0.02 if is_table else fan_in**-0.5 * 0.7)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
