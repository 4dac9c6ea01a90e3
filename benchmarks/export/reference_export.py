"""Export the two models inside a checkpoint to ONNX the standard way, with optimum.

The text decoder is transformers' own `Phi3ForCausalLM` and the image tower its `CLIPVisionModel`;
both take their dimensions from `config.json` and their weights from the safetensors files. No code
of the checkpoint is run. Nothing of `phi_edge` or `export` is used either: their graphs are
compared with what comes out, so it must not share their mistakes.

Needs the extra `reference`. The weights are held in float32, more than once during the export.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from optimum.exporters.onnx import onnx_export_from_model
from safetensors import safe_open
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

from .phi3v_config import read_config

VISION_PREFIX = "model.vision_embed_tokens."
TOWER_PREFIX = VISION_PREFIX + "img_processor."

# The fields that Phi-3-vision's config shares with Phi-3's. The others describe the image part,
# or name the checkpoint's own code and an attention kernel for GPUs.
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "sliding_window",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)

# The published configs only name their tower, openai/clip-vit-large-patch14-336.
_CLIP_VIT_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def export_decoder(checkpoint: Path, folder: Path, *, long_context: bool = False) -> Path:
    """Export the text decoder with its key/value cache.

    The graph takes `input_ids`, `attention_mask`, `position_ids` and `past_key_values.*`, and
    gives the logits of all positions and `present.*`.

    Args:
        checkpoint: Folder with `config.json` and `*.safetensors`.
        folder: Where to write; made when it is not there.
        long_context: Use the long RoPE factors. The exporter traces one run with a short dummy
            prompt, and the model's choice between the factors is a Python `if`, so a graph has
            the factors of one side of 4,096 tokens only.

    Returns:
        Path of the ONNX file.
    """
    model = build_decoder(checkpoint, long_context=long_context)
    return _export(model, folder, task="text-generation-with-past")


def export_tower(checkpoint: Path, folder: Path) -> Path:
    """Export the CLIP tower without its last layer.

    The graph takes `pixel_values` [crops, 3, 336, 336]. Its `last_hidden_state` [crops, 577, dim]
    is `hidden_states[-2]` of the whole tower, CLS token included; `pooler_output` is not used.

    Args:
        checkpoint: Folder with `config.json` and `*.safetensors`.
        folder: Where to write; made when it is not there.

    Returns:
        Path of the ONNX file.
    """
    return _export(build_tower(checkpoint), folder, task="feature-extraction")


def build_decoder(checkpoint: Path, *, long_context: bool = False) -> Phi3ForCausalLM:
    """Build Phi-3 with the checkpoint's weights in float32.

    Args:
        checkpoint: Folder with `config.json` and `*.safetensors`.
        long_context: Use the long RoPE factors for prompts of every length.
    """
    config = read_config(checkpoint)
    fields = {name: config[name] for name in _TEXT_FIELDS if name in config}
    if long_context:
        scaling = fields["rope_scaling"]
        fields["rope_scaling"] = {**scaling, "short_factor": scaling["long_factor"]}
    model = Phi3ForCausalLM(Phi3Config(**fields))
    tensors = read_tensors(
        checkpoint, lambda name: None if name.startswith(VISION_PREFIX) else name
    )
    model.load_state_dict(tensors)
    return model.eval()


def build_tower(checkpoint: Path) -> CLIPVisionModel:
    """Build CLIP in float32 without its last layer, whose output the image features do not use."""
    given = read_config(checkpoint)["img_processor"].get("vision_config", {})
    fields = {**_CLIP_VIT_L_14_336, **given}
    last_layer = fields["num_hidden_layers"] - 1
    fields["num_hidden_layers"] = last_layer
    unused = f"{TOWER_PREFIX}vision_model.encoder.layers.{last_layer}."

    def rename(name: str) -> str | None:
        if name.startswith(unused) or not name.startswith(TOWER_PREFIX):
            return None
        return name.removeprefix(TOWER_PREFIX)

    model = CLIPVisionModel(CLIPVisionConfig(**fields))
    model.load_state_dict(read_tensors(checkpoint, rename))
    return model.eval()


def read_tensors(checkpoint: Path, rename: Callable[[str], str | None]) -> dict[str, torch.Tensor]:
    """Read some of a checkpoint's tensors, in their stored type.

    Args:
        checkpoint: Folder with `*.safetensors`.
        rename: Gives a tensor's name in the result, or None to leave it out.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - the reader is not a mapping
                new_name = rename(name)
                if new_name is not None:
                    tensors[new_name] = reader.get_tensor(name)
    return tensors


def _export(model: Phi3ForCausalLM | CLIPVisionModel, folder: Path, *, task: str) -> Path:
    with warnings.catch_warnings():
        # The tracer warns of every Python branch that it freezes: the RoPE factors, see
        # `export_decoder`, and sizes and caches, which optimum patches or gives by its dummies.
        warnings.simplefilter("ignore")
        # Optimum's own validation compares with the model that it traced; the tests compare with
        # golden data of the original code instead.
        onnx_export_from_model(model, folder, task=task, do_validation=False)
    return folder / "model.onnx"
