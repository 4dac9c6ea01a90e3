"""The layouts in which GPTQ and AWQ checkpoints of Hugging Face hold quantized matrices.

Both give the inputs of a matrix in blocks a scale and a zero point per output, and a weight is
`(q - zero_point) * scale`, as in ONNX Runtime's `MatMulNBits`: so the integers only change places.
What differs is how 32-bit words hold them, lowest bits first.

- GPTQ: a word of `qweight` [in_features * bits / 32, out_features] holds successive inputs, and
  one of `qzeros` [num_blocks, out_features * bits / 32] successive outputs. The format "gptq"
  holds zero points less one, "gptq_v2" as they are.
- AWQ, "gemm": a word of `qweight` [in_features, out_features / 8] holds eight successive outputs
  in the order 0, 2, 4, 6, 1, 3, 5, 7, and so does one of `qzeros` [num_blocks, out_features / 8].

In both, `scales` are [num_blocks, out_features].

Sources: `auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py` in AutoGPTQ/AutoGPTQ,
`convert_gptq_v1_to_v2_format_module` in ModelCloud/GPTQModel, `awq/modules/linear/gemm.py` and
`awq/utils/packing_utils.py` in casper-hansen/AutoAWQ, all on GitHub.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Octets = npt.NDArray[np.uint8]
Words = npt.NDArray[Any]

# Where in an AWQ word its eight outputs stand.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


class Blocks(NamedTuple):
    """A quantized matrix as `MatMulNBits` takes it.

    Attributes:
        packed: uint8 [out_features, num_blocks, block_size * bits / 8].
        scales: [out_features, num_blocks], in their stored type.
        zero_points: uint8 [out_features, ceil(num_blocks * bits / 8)].
    """

    packed: Octets
    scales: npt.NDArray[np.generic]
    zero_points: Octets

    def dequantize(self, bits: int) -> npt.NDArray[np.float32]:
        """Return the matrix [out_features, in_features]; exact where scales have 16 bits."""
        weight = _unpack(self.packed, bits).astype(np.float32)
        weight -= _unpack(self.zero_points, bits)[:, : self.scales.shape[1], None]
        weight *= self.scales.astype(np.float32)[:, :, None]
        return weight.reshape(len(weight), -1)


@dataclasses.dataclass(frozen=True)
class PackedLayout:
    """How a checkpoint holds its quantized matrices.

    Attributes:
        method: "gptq" or "awq".
        bits: Of the integers: 4, or 8 in GPTQ.
        block_size: Inputs that share a scale.
        zero_offset: What is to be added to zero points.
        symmetric: Every zero point is in the middle of the range.
    """

    method: str
    bits: int
    block_size: int
    zero_offset: int = 0
    symmetric: bool = False

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of the tensors that stand for a matrix."""
        per_word, num_blocks = 32 // self.bits, in_features // self.block_size
        shapes = {
            "qzeros": (num_blocks, out_features // per_word),
            "scales": (num_blocks, out_features),
        }
        if self.method == "awq":
            return {"qweight": (in_features, out_features // per_word), **shapes}
        return {
            "qweight": (in_features // per_word, out_features),
            "g_idx": (in_features,),
            **shapes,
        }

    def repack(self, qweight: Words, qzeros: Words, scales: npt.NDArray[np.generic]) -> Blocks:
        """Bring the integers and scales into the order of `MatMulNBits`.

        Raises:
            ValueError: The zero points contradict the format, or scales are not finite.
        """
        if not np.isfinite(scales.astype(np.float32)).all():
            raise ValueError("scales are infinite or undefined")
        if self.method == "gptq":
            # The bytes of a word are in the order, and their halves too, that is wanted.
            packed = _octets(qweight.T)
            zero_points = _unpack(qzeros, self.bits)
        else:
            packed = _pack(self._unpack_awq(qweight).T, self.bits)
            zero_points = self._unpack_awq(qzeros)
        zero_points = self._checked(zero_points)
        block_bytes = self.block_size * self.bits // 8
        return Blocks(
            packed.reshape(len(packed), -1, block_bytes),
            np.ascontiguousarray(scales.T),
            _pack(zero_points.T, self.bits),
        )

    def _unpack_awq(self, words: Words) -> Octets:
        values = _unpack(words, self.bits)
        return values.reshape(len(words), -1, 8)[..., _AWQ_PLACES].reshape(values.shape)

    def _checked(self, zero_points: Octets) -> Octets:
        """Return zero points [num_blocks, out_features] as they are meant."""
        if self.zero_offset and (zero_points == 2**self.bits - 1).any():
            # Read as 0, as 2**bits, or with a carry into the next one, by different programs.
            raise ValueError(
                'there are zero points of 0, which the format "gptq" cannot hold: '
                "export from the original weights instead"
            )
        zero_points = zero_points + np.uint8(self.zero_offset)
        middle = 2 ** (self.bits - 1)
        if self.symmetric and (zero_points != middle).any():
            raise ValueError(
                f"config.json says that quantization is symmetric, and not all zero points are "
                f'{middle}: its "checkpoint_format" or "sym" may be wrong'
            )
        return zero_points


def _octets(words: Words) -> Octets:
    """Give the bytes of integers, lowest first, along the last axis."""
    little = words.dtype.newbyteorder("<")
    return np.ascontiguousarray(words, little).view(np.uint8)


def _unpack(words: Words, bits: int) -> Octets:
    """Give the values of `bits` bits, 4 or 8, in integers, lowest first, along the last axis."""
    octets = _octets(words)
    if bits == 8:
        return octets
    return np.stack([octets & 0xF, octets >> 4], axis=-1).reshape(*octets.shape[:-1], -1)


def _pack(values: Octets, bits: int) -> Octets:
    """Pack values into bytes, lowest first; fill an odd count of 4-bit values up with zero."""
    if bits == 8:
        return np.ascontiguousarray(values)
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    packed: Octets = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return packed
