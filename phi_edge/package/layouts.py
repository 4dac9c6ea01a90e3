"""How others lay out a package of this model, and what their configurations say.

`microsoft/Phi-3.5-vision-instruct-onnx` and `microsoft/Phi-3-vision-128k-instruct-onnx*` are made
for onnxruntime-genai, `onnx-community/Phi-3.5-vision-instruct` for transformers.js. Formats:
https://onnxruntime.ai/docs/genai/reference/config.html,
https://huggingface.co/docs/transformers.js.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from phi_edge.errors import PackageError
from phi_edge.package.base import (
    DECODER,
    EMBEDDING,
    GENAI_CONFIG_FILE,
    PROCESSOR_CONFIG_FILE,
    TOKENIZER_FILE,
    VISION,
)

GENAI_LAYOUT, TRANSFORMERS_JS_LAYOUT = "onnxruntime-genai", "transformers.js"
# Its embedding takes no image features.
FIRST_GENAI_LAYOUT = "onnxruntime-genai of May 2024"

# Beginnings of the decoder's file name, as Microsoft publishes it.
_NAMES = {"phi-3.5-v": "Phi-3.5-vision-instruct", "phi-3-v": "Phi-3-vision-128k-instruct"}

_CONFIG_FILE, _PREPROCESSOR_FILE = "config.json", "preprocessor_config.json"
_GRAPH_FOLDER = "onnx"
# Graphs come in several precisions; the first of these that has all three is taken.
_SUFFIXES = ("_q4", "_q4f16", "_fp16", "")
_STEMS = {VISION: "vision_encoder", EMBEDDING: "prepare_inputs_embeds", DECODER: "model"}

_DECODER_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_size",
)
_IDS = ("bos_token_id", "pad_token_id")
_MODEL_SIZES = ("vocab_size", "context_length", *_IDS)

_END_TOKENS = ("<|end|>", "<|endoftext|>")

# Of Phi-3.5-vision; where a folder says nothing else.
_NUM_CROPS = 4
_IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
_IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the configuration files of a folder say.

    Attributes:
        kind: Name of the layout.
        name: The model's name.
        sizes: Integers of `ModelConfig`.
        eos_token_ids: Tokens that end a completion.
        image_mean, image_std: As in `ModelConfig`.
        graphs: Files of the graphs by their roles.
        configs: The files that this was read from.
        built_for: The provider that the graphs were built for, where one is named.
    """

    kind: str
    name: str
    sizes: Mapping[str, int]
    eos_token_ids: tuple[int, ...]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    graphs: Mapping[str, str]
    configs: tuple[str, ...]
    built_for: str | None = None


def find_config(folder: Path) -> Path | None:
    """Find the file that says how a folder is laid out; None if it is no package of others."""
    if (config := folder / GENAI_CONFIG_FILE).is_file():
        return config
    has_graphs = any((folder / _GRAPH_FOLDER).glob(f"{_STEMS[DECODER]}*.onnx"))
    if has_graphs and (config := folder / _CONFIG_FILE).is_file():
        return config
    return None


def read_layout(config: Path) -> Layout:
    """Read the configuration that `find_config` found, and those beside it.

    Raises:
        PackageError: It is damaged, or that of another model.
    """
    read = _read_genai if config.name == GENAI_CONFIG_FILE else _read_transformers_js
    try:
        layout = read(config.parent)
        _check(layout)
    except PackageError:
        raise  # it is a ValueError, too
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise PackageError(
            f"{config}, or a file beside it, is damaged ({type(error).__name__}: {error}): "
            "fetch it again"
        ) from None
    return layout


def _check(layout: Layout) -> None:
    for name, value in layout.sizes.items():
        if type(value) is not int or not 0 <= value < 2**31 or (value < 1 and name not in _IDS):
            raise ValueError(f"{name} is {value!r}")
    for name in layout.graphs.values():
        path = PureWindowsPath(name)  # whose rules are the stricter ones
        if not name or path.anchor or ".." in path.parts:
            raise ValueError(f"it names a graph outside of the folder: {name!r}")


def _read_genai(folder: Path) -> Layout:
    config = _read_json(folder / GENAI_CONFIG_FILE)["model"]
    if config["type"] != "phi3v":
        raise _other_model(folder, config["type"])
    decoder = config["decoder"]
    graphs = {role: config[role]["filename"] for role in (VISION, EMBEDDING, DECODER)}
    processor = _read_json(folder / PROCESSOR_CONFIG_FILE, optional=True)
    known = [name for start, name in _NAMES.items() if graphs[DECODER].startswith(start)]
    return Layout(
        GENAI_LAYOUT,
        known[0] if known else folder.resolve().name,
        {
            **{name: decoder[name] for name in _DECODER_SIZES},
            **{name: config[name] for name in _MODEL_SIZES},
            "num_crops": _transformed_crops(processor),
        },
        _ends(folder, config["eos_token_id"], config["vocab_size"]),
        _IMAGE_MEAN,
        _IMAGE_STD,
        graphs,
        (GENAI_CONFIG_FILE, PROCESSOR_CONFIG_FILE),
        _named_provider(decoder),
    )


def _named_provider(decoder: Mapping[str, Any]) -> str | None:
    options = (decoder.get("session_options") or {}).get("provider_options") or []
    names = [name.lower() for entry in options if isinstance(entry, dict) for name in entry]
    return names[0] if names else None


def _transformed_crops(processor: Mapping[str, Any]) -> Any:
    """Find the number of crops in `processor_config.json`."""
    for transform in processor.get("processor", {}).get("transforms", []):
        attributes = transform["operation"].get("attrs", {})
        if "num_crops" in attributes:
            return attributes["num_crops"]
    return _NUM_CROPS


def _read_transformers_js(folder: Path) -> Layout:
    config = _read_json(folder / _CONFIG_FILE)
    if config["model_type"] != "phi3_v":
        raise _other_model(folder, config["model_type"])
    num_heads = config["num_attention_heads"]
    processor = _read_json(folder / _PREPROCESSOR_FILE, optional=True)
    return Layout(
        TRANSFORMERS_JS_LAYOUT,
        PurePosixPath(config.get("_name_or_path") or folder.resolve()).name,
        {
            "hidden_size": config["hidden_size"],
            "num_hidden_layers": config["num_hidden_layers"],
            "num_attention_heads": num_heads,
            "num_key_value_heads": config.get("num_key_value_heads", num_heads),
            "head_size": config["hidden_size"] // num_heads,
            "vocab_size": config["vocab_size"],
            "context_length": config["max_position_embeddings"],
            "bos_token_id": config["bos_token_id"],
            "pad_token_id": config.get("pad_token_id", config["eos_token_id"]),
            "num_crops": processor.get("num_crops", _NUM_CROPS),
        },
        _ends(folder, config["eos_token_id"], config["vocab_size"]),
        _three_floats(processor.get("image_mean", _IMAGE_MEAN)),
        _three_floats(processor.get("image_std", _IMAGE_STD)),
        _find_graphs(folder),
        (_CONFIG_FILE, _PREPROCESSOR_FILE),
    )


def _find_graphs(folder: Path) -> dict[str, str]:
    sets = [
        {role: f"{_GRAPH_FOLDER}/{stem}{suffix}.onnx" for role, stem in _STEMS.items()}
        for suffix in _SUFFIXES
    ]
    for graphs in sets:
        if all((folder / file).is_file() for file in graphs.values()):
            return graphs
    raise PackageError(
        f"{folder} has the layout of transformers.js, and no whole set of graphs: it needs "
        f"{', '.join(sets[0].values())}, or those of another precision"
    )


def _ends(folder: Path, eos: object, vocab_size: int) -> tuple[int, ...]:
    """List the tokens that end a completion: those that are configured, and the template's."""
    listed = eos if isinstance(eos, list) else [eos]
    tokens = _read_json(folder / TOKENIZER_FILE, optional=True).get("added_tokens", [])
    ends = [*listed, *(token["id"] for token in tokens if token["content"] in _END_TOKENS)]
    for token_id in ends:
        if type(token_id) is not int or token_id < 0:
            raise ValueError(f"eos_token_id is {eos!r}")
    return tuple(token_id for token_id in dict.fromkeys(ends) if token_id < vocab_size)


def _three_floats(values: object) -> tuple[float, float, float]:
    red, green, blue = map(float, values)  # type: ignore[call-overload]
    return red, green, blue


def _read_json(path: Path, *, optional: bool = False) -> Any:
    if optional and not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PackageError(f"{path} is missing: fetch it again") from None
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{path} is damaged ({error}): fetch it again") from None


def _other_model(folder: Path, kind: object) -> PackageError:
    return PackageError(
        f"{folder} has a model of the type {kind!r}: phi_edge runs Phi-3.5-vision and "
        "Phi-3-vision alone"
    )
