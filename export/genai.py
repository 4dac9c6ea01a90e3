"""The files that make a package a model folder of onnxruntime-genai (model type `phi3v`).

Format: https://onnxruntime.ai/docs/genai/reference/config.html
"""

from __future__ import annotations

from typing import Any

from phi_edge import package
from phi_edge.engine.providers import find_provider
from phi_edge.package import ModelConfig

# Merged patches of one crop: 24 x 24 patches in squares of 2 x 2.
_TOKENS_PER_CROP = 144


def genai_config(model: ModelConfig, provider: str) -> dict[str, Any]:
    """Make the contents of `genai_config.json`."""
    name = find_provider(provider).genai_name
    session_options = {
        "log_id": "onnxruntime-genai",
        # Errors only: ONNX Runtime would warn that an input with a default is not a constant.
        "log_severity_level": 3,
        "provider_options": [] if name == "cpu" else [{name: {}}],
    }
    return {
        "model": {
            "type": "phi3v",
            "bos_token_id": model.bos_token_id,
            "eos_token_id": list(model.eos_token_ids),
            "pad_token_id": model.pad_token_id,
            "vocab_size": model.vocab_size,
            "context_length": model.context_length,
            "vision": {
                "filename": package.GRAPH_FILES[package.VISION],
                "config_filename": package.PROCESSOR_CONFIG_FILE,
                "session_options": session_options,
                "inputs": {name: name for name in (package.PIXEL_VALUES, package.IMAGE_SIZES)},
                "outputs": {package.IMAGE_FEATURES: package.IMAGE_FEATURES},
            },
            "embedding": {
                "filename": package.GRAPH_FILES[package.EMBEDDING],
                "session_options": session_options,
                "inputs": {name: name for name in (package.INPUT_IDS, package.IMAGE_FEATURES)},
                "outputs": {package.INPUTS_EMBEDS: package.INPUTS_EMBEDS},
            },
            "decoder": {
                "filename": package.GRAPH_FILES[package.DECODER],
                "session_options": session_options,
                "hidden_size": model.hidden_size,
                "head_size": model.head_size,
                "num_hidden_layers": model.num_hidden_layers,
                "num_attention_heads": model.num_attention_heads,
                "num_key_value_heads": model.num_key_value_heads,
                "inputs": {
                    package.INPUTS_EMBEDS: package.INPUTS_EMBEDS,
                    package.ATTENTION_MASK: package.ATTENTION_MASK,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    package.LOGITS: package.LOGITS,
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "early_stopping": True,
            "max_length": model.context_length,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def processor_config(model: ModelConfig) -> dict[str, Any]:
    """Make the contents of `processor_config.json`."""
    # ConvertRGB swaps the channels, so decoding has to give them swapped.
    operations = [
        ("DecodeImage", {"color_space": "BGR"}),
        ("ConvertRGB", None),
        (
            "Phi3ImageTransform",
            {"num_crops": model.num_crops, "num_img_tokens": _TOKENS_PER_CROP},
        ),
    ]
    return {
        "processor": {
            "name": "image_processing",
            "transforms": [
                {
                    "operation": {
                        "name": kind.lower(),
                        "domain": "com.microsoft.extensions",
                        "type": kind,
                        **({"attrs": attributes} if attributes else {}),
                    }
                }
                for kind, attributes in operations
            ],
        }
    }
