"""What a package is, whoever wrote it: names, and what the runtime has to know of the model."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping

GENAI_CONFIG_FILE = "genai_config.json"
PROCESSOR_CONFIG_FILE = "processor_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

VISION, EMBEDDING, DECODER, PREFILL = "vision", "embedding", "decoder", "prefill"
PIXEL_VALUES, IMAGE_SIZES, IMAGE_FEATURES = "pixel_values", "image_sizes", "image_features"
INPUT_IDS, INPUTS_EMBEDS = "input_ids", "inputs_embeds"
POSITION_IDS, NUM_LOGITS_TO_KEEP = "position_ids", "num_logits_to_keep"
ATTENTION_MASK, LOGITS = "attention_mask", "logits"


def past_name(layer: int, part: str) -> str:
    """Name the decoder's input of the cached keys or values (`part` is "key" or "value")."""
    return f"past_key_values.{layer}.{part}"


def present_name(layer: int, part: str) -> str:
    """Name the decoder's output of the extended keys or values (`part` is "key" or "value")."""
    return f"present.{layer}.{part}"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What the runtime has to know about the model inside the graphs.

    Attributes:
        context_length: Most tokens that a sequence can have (`max_position_embeddings`).
        original_context_length: Longest sequence that uses the short RoPE factors.
        io_dtype: "float32" or "float16", the type of embeddings and features.
        cache_dtype: The same or "int8", the type of the key/value cache.
        eos_token_ids: Tokens that end a completion.
        num_crops: Default number of crops per image.
        image_mean, image_std: Per-channel normalisation (RGB) of pixel values in 0-1.
    """

    hidden_size: int
    vocab_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    context_length: int
    original_context_length: int
    io_dtype: str
    cache_dtype: str
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    num_crops: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def rope_limit(self, num_tokens: int) -> int:
        """Find how long a sequence of `num_tokens` can become and keep its RoPE factors.

        Sequences with the same limit have the same factors. One that grows beyond its limit, or is
        cut back below another's, has other keys for all of its tokens.
        """
        is_short = num_tokens <= self.original_context_length
        return self.original_context_length if is_short else self.context_length

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of key/value cache that one token takes."""
        item_bytes = {"float32": 4, "float16": 2, "int8": 1}[self.cache_dtype]
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_size * item_bytes


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hexadecimal) of one file; empty where nothing tells it."""

    size: int
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Package(ABC):
    """What is known of a package.

    Attributes:
        name: The model's name.
        provider: Execution provider family that the graphs were built for.
        precision: "fp32", "fp16" or "int4".
        files: Every file of the package but a manifest.
    """

    name: str
    provider: str
    precision: str
    model: ModelConfig
    files: Mapping[str, FileEntry]

    @property
    @abstractmethod
    def layout(self) -> str:
        """How the folder is laid out: by whose conventions."""

    @property
    @abstractmethod
    def graph_files(self) -> Mapping[str, str]:
        """Files of the graphs by their roles."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """What tells the package from others: hexadecimal, of 256 bits."""

    @abstractmethod
    def weights_bytes(self, role: str) -> int:
        """Bytes of a graph's weights."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())
