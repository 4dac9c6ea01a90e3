"""Write a GGUF file as `llama-quantize Q4_0` would: random weights, output matrix in Q6_K.

    python -m benchmarks.speed.peers.gguf_file OUT.gguf

Needs the package `gguf`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from . import HEADS, HIDDEN, INNER, LAYERS, VOCABULARY

_ORIGINAL_LENGTH, _LENGTH = 4096, 131072
# Bytes before or after which a block's float16 scale stands, and a scale that gives weights a
# standard deviation of about 0.02: https://github.com/ggml-org/llama.cpp, ggml-common.h.
_POOL = np.random.default_rng(0).integers(0, 256, 2**24 - 3, np.uint8)


def q4_0(rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Make blocks of 32: a float16 scale, 16 bytes of values."""
    blocks = np.resize(_POOL, (rows, columns // 32, 18))
    blocks[..., :2] = np.frombuffer(np.float16(0.0043).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def q6_k(rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Make blocks of 256: 192 bytes of values, 16 int8 scales, a float16 scale of these."""
    blocks = np.resize(_POOL, (rows, columns // 256, 210))
    blocks[..., 208:] = np.frombuffer(np.float16(1.5e-5).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def write(path: Path) -> None:
    """Write the file."""
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_block_count(LAYERS)
    writer.add_context_length(_LENGTH)
    writer.add_rope_scaling_orig_ctx_len(_ORIGINAL_LENGTH)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_rope_scaling_attn_factors(1.19)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    tokens += [f"t{number}" for number in range(len(tokens), VOCABULARY)]
    kinds += [gguf.TokenType.NORMAL] * (VOCABULARY - len(kinds))
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(VOCABULARY)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    factors = np.linspace(1.05, 3.05, HIDDEN // HEADS // 2, dtype=np.float32)
    writer.add_tensor("rope_factors_long.weight", factors * 4)
    writer.add_tensor("rope_factors_short.weight", factors)
    norm = np.ones(HIDDEN, np.float32)
    packed = gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("token_embd.weight", q4_0(VOCABULARY, HIDDEN), raw_dtype=packed)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", norm)
        for name, rows, columns in (
            ("attn_qkv", 3 * HIDDEN, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_up", 2 * INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
        ):
            writer.add_tensor(f"blk.{layer}.{name}.weight", q4_0(rows, columns), raw_dtype=packed)
    writer.add_tensor("output_norm.weight", norm)
    last = gguf.GGMLQuantizationType.Q6_K
    writer.add_tensor("output.weight", q6_k(VOCABULARY, HIDDEN), raw_dtype=last)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
