"""Write a checkpoint with the dimensions and tensor names of Phi-3.5-vision and random weights.

    python -m benchmarks.synthetic_checkpoint OUT

Its answers mean nothing; its size, and the time and memory that it takes, are the real ones.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from export.config import expected_tensors, read_config

# Dimensions: config.json of microsoft/Phi-3.5-vision-instruct. The LongRoPE factors are made up,
# between the published first and last ones.
FULL_SIZE = {
    "model_type": "phi3_v",
    "architectures": ["Phi3VForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {
        "type": "su",
        "short_factor": np.linspace(1.05, 3.05, 48).tolist(),
        "long_factor": np.geomspace(1.03, 64.8, 48).tolist(),
    },
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "img_processor": {
        "image_dim_out": 1024,
        "model_name": "openai/clip-vit-large-patch14-336",
        "name": "clip_vision_model",
        "num_img_tokens": 144,
    },
}

# preprocessor_config.json of microsoft/Phi-3.5-vision-instruct.
PREPROCESSOR = {
    "num_crops": 4,
    "num_img_tokens": 144,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

WEIGHT_STD = 0.02
# A prime, so that no two rows of a matrix are the same.
POOL_SIZE = 2**24 - 3
_SHARD_BYTES = 5 * 10**9


class RandomWeights:
    """Weights by the names of their tensors, always the same ones.

    Drawing billions of numbers would take minutes: each tensor starts somewhere else in a pool of a
    few million. ONNX Runtime keeps equal weights once, so no two may be equal.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        pool = np.random.default_rng(0).standard_normal(POOL_SIZE, np.float32)
        self._pool = (pool * np.float32(WEIGHT_STD)).astype(dtype)

    def draw(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        """Make ones for a norm, and normal draws for everything else."""
        if "norm" in name and name.endswith("weight"):
            return np.ones(shape, self._pool.dtype)
        return np.resize(np.roll(self._pool, zlib.crc32(name.encode())), shape)


def write_checkpoint(
    folder: Path, config: Mapping[str, object], *, with_weights: bool = True
) -> None:
    """Write a checkpoint folder, weights in bfloat16, one tensor in memory at a time.

    Args:
        folder: Where to.
        config: As in `config.json`.
        with_weights: Without them, files have the right headers and holes in place of weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2))
    write_tokenizer(folder)

    shards: list[dict[str, tuple[int, ...]]] = [{}]
    shard_bytes = 0
    for name, shape in expected_tensors(read_config(folder)).items():
        num_bytes = 2 * math.prod(shape)
        if shard_bytes + num_bytes > _SHARD_BYTES:
            shards.append({})
            shard_bytes = 0
        shards[-1][name] = shape
        shard_bytes += num_bytes
    weights = RandomWeights(ml_dtypes.bfloat16) if with_weights else None
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        _write_shard(folder / file, shard, weights)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_shard(
    path: Path, tensors: Mapping[str, tuple[int, ...]], weights: RandomWeights | None
) -> None:
    """Write a safetensors file: https://huggingface.co/docs/safetensors, "Format"."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    length = len(encoded).to_bytes(8, "little")
    with path.open("wb") as file:
        file.write(length + encoded)
        if weights is None:
            file.truncate(file.tell() + end)
            return
        for name, shape in tensors.items():
            file.write(weights.draw(name, shape).tobytes())


# The tokenizer: bytes, letters and a few merges, so that it fits a vocabulary of 512.
_CHARACTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!'"
_MERGES = [
    ("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("▁", "i"), ("i", "n"), ("o", "u"),
    ("▁", "s"), ("a", "t"), ("▁", "W"), ("▁W", "h"), ("▁Wh", "at"),
]  # fmt: skip
CHAT_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|image|>")
_STRIP_WHAT_FOLLOWS = ("<|assistant|>", "<|image|>")


_UNKNOWN, _BEGIN, _END = "<unk>", "<s>", "</s>"
FIRST_TOKENS = [_UNKNOWN, _BEGIN, _END, *(f"<0x{byte:02X}>" for byte in range(256))]

_TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": _BEGIN,
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": _UNKNOWN,
    "legacy": False,
}


def write_tokenizer(folder: Path) -> None:
    """Write a small tokenizer of the same kind as Phi-3.5's, with its chat tokens."""
    pieces = [*FIRST_TOKENS, *_CHARACTERS, *("".join(pair) for pair in _MERGES)]
    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    save_tokenizer(make_tokenizer(vocabulary, _MERGES), folder)


def make_tokenizer(vocabulary: Mapping[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Make a tokenizer with Phi-3.5's rules and chat tokens, and a vocabulary of its own.

    Args:
        vocabulary: Piece -> id; `FIRST_TOKENS` first.
        merges: Pairs of pieces, in the order in which they are merged.
    """
    tokenizer = Tokenizer(
        models.BPE(dict(vocabulary), merges, unk_token=_UNKNOWN, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, rstrip=token in _STRIP_WHAT_FOLLOWS)
            for token in (_UNKNOWN, _BEGIN, _END, *CHAT_TOKENS)
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", pair=f"{_BEGIN} $A {_BEGIN}:1 $B:1", special_tokens=[(_BEGIN, 1)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps(_TOKENIZER_CONFIG, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    write_checkpoint(parser.parse_args().out, FULL_SIZE)


if __name__ == "__main__":
    main()
