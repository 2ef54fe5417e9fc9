"""Types of tensors in a GGUF file, and their dequantization, with the results of ggml.

A quantized row is a sequence of blocks: of 32 values with one fp16 scale, or of 256 with scales for
groups of 16 or 32. N blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_CHUNK = 2**20
"""Values that are dequantized at once: it bounds the memory of the intermediate results."""


@dataclass(frozen=True)
class TensorType:
    """A type of tensors: how many values a block has, in how many bytes, and its decoding."""

    name: str
    values: int
    bytes: int
    decode: Callable[[np.ndarray], np.ndarray]
    """From blocks, uint8 (N, bytes), to fp32 (N, values)."""


def dequantize(data: np.ndarray, type: TensorType) -> np.ndarray:
    """Return the values of a tensor in fp32, one-dimensional.

    Args:
        data: its bytes, uint8; for fp32 the result is a view of them.
        type: its type.
    """
    blocks = data.reshape(-1, type.bytes)
    if type.name == "F32":
        return type.decode(blocks).reshape(-1)
    out = np.empty((len(blocks), type.values), np.float32)
    step = _CHUNK // type.values
    with np.errstate(invalid="ignore"):  # an infinite scale makes NaN, which callers refuse
        for start in range(0, len(blocks), step):
            out[start : start + step] = type.decode(blocks[start : start + step])
    return out.reshape(-1)


def _f16(data: np.ndarray) -> np.ndarray:
    """Return the fp16 values in bytes (N, 2 x K) as fp32 (N, K)."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _decode_bf16(blocks: np.ndarray) -> np.ndarray:
    # bf16 is the upper half of fp32.
    return (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _f16(blocks[:, :2])


def _nibbles(data: np.ndarray) -> np.ndarray:
    """Return the lower halves of the bytes (..., K), then the upper ones: (..., 2 x K)."""
    return np.concatenate([data & np.uint8(15), data >> np.uint8(4)], axis=-1)


def _fifth_bits(data: np.ndarray) -> np.ndarray:
    """Return the bits in bytes (N, 4), the lowest first, as the fifth bits of values (N, 32)."""
    return np.unpackbits(data, axis=-1, bitorder="little") << np.uint8(4)


def _decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - 8) * _f16(blocks[:, :2])


def _decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    return _nibbles(blocks[:, 4:]) * _f16(blocks[:, :2]) + _f16(blocks[:, 2:4])


def _decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (values.astype(np.float32) - 16) * _f16(blocks[:, :2])


def _decode_q5_1(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return values * _f16(blocks[:, :2]) + _f16(blocks[:, 2:4])


def _decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    return _scale_groups(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)))


def _decode_q5_k(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    # Bit g of a byte belongs to a value of group g.
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]
    return _scale_groups(blocks, values | (fifth & np.uint8(1)) << np.uint8(4))


def _scale_groups(blocks: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Apply the 6-bit scales and minima of 8 groups, bytes 4 to 15 of a block, to its values."""
    packed = blocks[:, 4:16].reshape(-1, 3, 4)
    first, second, rest = packed[:, 0], packed[:, 1], packed[:, 2]
    six, four, high = np.uint8(63), np.uint8(15), np.uint8(6)
    scales = [first & six, rest & four | first >> high << np.uint8(4)]
    minima = [second & six, rest >> np.uint8(4) | second >> high << np.uint8(4)]
    scale = _f16(blocks[:, :2]) * np.concatenate(scales, axis=-1)
    minimum = _f16(blocks[:, 2:4]) * np.concatenate(minima, axis=-1)
    scaled = scale[..., None] * values.reshape(-1, 8, 32) - minimum[..., None]
    return scaled.reshape(-1, 256)


def _decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & np.uint8(3)
    values = (low | high << np.uint8(4)).reshape(-1, 16, 16).astype(np.float32) - 32
    scale = _f16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8)
    return (scale[..., None] * values).reshape(-1, 256)


TYPES = {
    0: TensorType("F32", 1, 4, lambda blocks: blocks.view("<f4")),
    1: TensorType("F16", 1, 2, _f16),
    2: TensorType("Q4_0", 32, 18, _decode_q4_0),
    3: TensorType("Q4_1", 32, 20, _decode_q4_1),
    6: TensorType("Q5_0", 32, 22, _decode_q5_0),
    7: TensorType("Q5_1", 32, 24, _decode_q5_1),
    8: TensorType("Q8_0", 32, 34, _decode_q8_0),
    12: TensorType("Q4_K", 256, 144, _decode_q4_k),
    13: TensorType("Q5_K", 256, 176, _decode_q5_k),
    14: TensorType("Q6_K", 256, 210, _decode_q6_k),
    30: TensorType("BF16", 1, 2, _decode_bf16),
}
"""The types that are read, by their number in a file."""

# Other types, by their number, for the message that refuses them.
OTHER_TYPES = {
    **{9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS"},
    **{19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16"},
    **{26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
    **{40: "NVFP4", 41: "Q1_0"},
}
