"""What the exporter reads of a checkpoint's `config.json`, and the tensors that follow from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi_edge.errors import CheckpointError

# CLIP ViT-L/14-336 (openai/clip-vit-large-patch14-336), the tower of Phi-3-vision and
# Phi-3.5-vision, whose own config.json names it and leaves its dimensions out.
_CLIP_VIT_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "layer_norm_eps": 1e-5,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}

# Whatever the config could set and the graphs take for granted.
_REQUIRED = {
    "model_type": "phi3_v",
    "hidden_act": "silu",
    "embd_layer.use_hd_transform": True,
    "embd_layer.with_learnable_separator": True,
    "embd_layer.hd_transform_order": "sub_glb",
    "embd_layer.projection_cls": "mlp",
    "tie_word_embeddings": False,
}


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Dimensions of the CLIP tower."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float
    image_size: int
    patch_size: int

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class Phi3VConfig:
    """Dimensions of the language model, its LongRoPE factors, and the tower."""

    name: str
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    original_max_position_embeddings: int
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    vision: VisionConfig

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def qkv_size(self) -> int:
        """Outputs of the fused projection: queries, keys, values."""
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_size


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        CheckpointError: The file is missing, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def read_config(folder: Path) -> Phi3VConfig:
    """Read `config.json`.

    Raises:
        CheckpointError: It is missing, incomplete, or describes another architecture.
    """
    path = folder / "config.json"
    raw = read_json(path)
    for name, wanted in _REQUIRED.items():
        found = _lookup(raw, name, default=wanted if name != "model_type" else None)
        if found != wanted:
            raise CheckpointError(
                f"{path}: {name} is {found!r}; only Phi-3-vision and Phi-3.5-vision checkpoints "
                f"can be exported, which have {wanted!r}"
            )
    try:
        config = _parse_config(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is incomplete or has a value of the wrong type "
            f"({type(error).__name__}: {error})"
        ) from None
    _check_config(path, config)
    return config


def _parse_config(raw: Mapping[str, Any]) -> Phi3VConfig:
    vision_raw = {**_CLIP_VIT_L_14_336, **raw["img_processor"].get("vision_config", {})}
    if vision_raw["hidden_act"] != "quick_gelu":
        raise ValueError(f"vision hidden_act is {vision_raw['hidden_act']!r}, not 'quick_gelu'")
    scaling = raw["rope_scaling"]
    if scaling["type"] not in ("su", "longrope"):
        raise ValueError(f"rope_scaling type is {scaling['type']!r}, not 'su' or 'longrope'")
    return Phi3VConfig(
        **{
            field.name: raw[field.name]
            for field in dataclasses.fields(Phi3VConfig)
            if field.name not in ("name", "short_factor", "long_factor", "vision")
        },
        # A name on the hub, or a path.
        name=Path(raw.get("_name_or_path") or raw["model_type"]).name,
        short_factor=tuple(map(float, scaling["short_factor"])),
        long_factor=tuple(map(float, scaling["long_factor"])),
        vision=VisionConfig(
            **{field.name: vision_raw[field.name] for field in dataclasses.fields(VisionConfig)}
        ),
    )


def _check_config(path: Path, config: Phi3VConfig) -> None:
    half_head = config.head_size // 2
    checks = {
        "hidden_size is not a multiple of num_attention_heads": (
            config.hidden_size % config.num_attention_heads == 0
        ),
        f"rope_scaling needs {half_head} short and {half_head} long factors": (
            len(config.short_factor) == len(config.long_factor) == half_head
        ),
        "max_position_embeddings is below original_max_position_embeddings": (
            config.max_position_embeddings >= config.original_max_position_embeddings
        ),
        "the vision tower's crops are not 336 pixels with an even number of patches": (
            config.vision.image_size == 336 and config.vision.grid % 2 == 0
        ),
    }
    for problem, fine in checks.items():
        if not fine:
            raise CheckpointError(f"{path}: {problem}")


def _lookup(raw: Mapping[str, Any], dotted: str, default: Any) -> Any:
    value: Any = raw
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value


def expected_tensors(config: Phi3VConfig) -> dict[str, tuple[int, ...]]:
    """List the name and shape of every tensor of a checkpoint with this configuration.

    The last CLIP layer and `post_layernorm` belong to the checkpoint, although the features are
    taken before them.
    """
    hidden, vision = config.hidden_size, config.vision
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config.vocab_size, hidden),
    }
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "self_attn.qkv_proj.weight": (config.qkv_size, hidden),
            layer + "self_attn.o_proj.weight": (hidden, hidden),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.gate_up_proj.weight": (2 * config.intermediate_size, hidden),
            layer + "mlp.down_proj.weight": (hidden, config.intermediate_size),
        }

    embed = "model.vision_embed_tokens."
    merged = 4 * vision.hidden_size
    shapes |= {
        embed + "sub_GN": (1, 1, 1, merged),
        embed + "glb_GN": (1, 1, merged),
        embed + "img_projection.0.weight": (hidden, merged),
        embed + "img_projection.0.bias": (hidden,),
        embed + "img_projection.2.weight": (hidden, hidden),
        embed + "img_projection.2.bias": (hidden,),
    }
    clip = embed + "img_processor.vision_model."
    width, inner, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    shapes |= {
        clip + "embeddings.class_embedding": (width,),
        clip + "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        clip + "embeddings.position_embedding.weight": (vision.grid**2 + 1, width),
    }
    linears = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, width),
        "self_attn.v_proj": (width, width),
        "self_attn.out_proj": (width, width),
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
    }
    layers = [f"{clip}encoder.layers.{i}." for i in range(vision.num_hidden_layers)]
    for layer in layers:
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    norms = [clip + "pre_layrnorm", clip + "post_layernorm"]
    norms += [layer + name for layer in layers for name in ("layer_norm1", "layer_norm2")]
    for norm in norms:
        shapes |= {norm + ".weight": (width,), norm + ".bias": (width,)}
    return shapes
