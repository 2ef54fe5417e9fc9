"""CPU kernels of single operations: packed weights, (quantized) matmul. See `cpu_kernels.c`.

N rows, I input features, O output features.
"""

from __future__ import annotations

import math
from ctypes import byref
from typing import NamedTuple

import torch

from .cpu_library import LIBRARY, MatrixStruct, address_of, is_plain

MAX_KERNEL_TOKENS = 128
"""Rows that the layers are computed for at a time.

The kernels compute any number, in no more time than PyTorch: its products and its attention differ
in the last bits with the number of rows, and a token would depend on what else is computed.
"""
GROUP = 32
"""Inputs of a product, consecutive in a row, that share a scale; int4 weights, too."""
PANEL = 16
"""Outputs whose quantized weights are stored side by side."""
ACTIVATIONS = ("none", "gelu_tanh", "gelu", "relu", "silu")
"""In the order of the enum in `cpu_kernels.c`."""


class Weights(NamedTuple):
    """A matrix (O, I), in a layout of `kernel_matrix.h`, and the bias (O,) of its layer."""

    values: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None
    inputs: int
    outputs: int
    bits: int

    @property
    def has_kernel(self) -> bool:
        """Whether the library is loaded and supports the matrix."""
        multiple = {32: 8, 28: 64, 8: 1, 4: 1}[self.bits]  # of inputs
        has_size = self.inputs > 0 and self.outputs > 0 and self.inputs % multiple == 0
        parts = (is_plain(part, of) for part, of, _ in self._parts if part is not None)
        is_complete = (self.scale is None) == (self.bits == 32)
        return LIBRARY is not None and has_size and is_complete and all(parts)

    @property
    def _parts(self) -> tuple[tuple[torch.Tensor | None, torch.dtype, int], ...]:
        """Each tensor, with the dtype and the number of elements that the library expects."""
        rows, groups = self.outputs, -(-self.inputs // GROUP)
        padded = -(-rows // PANEL) * PANEL
        values, count, scale, scales = {
            32: (torch.float32, rows * self.inputs, torch.float32, 0),
            # The size of packed rows depends on the weights.
            28: (torch.int32, self.values.numel(), torch.int32, 2 * rows),
            8: (torch.uint8, padded * groups * GROUP, torch.float32, padded),
            4: (torch.uint8, padded * groups * GROUP // 2, torch.int32, padded * groups),
        }[self.bits]
        bias = (self.bias, torch.float32, rows)
        return (self.values, values, count), (self.scale, scale, scales), bias

    def struct(self) -> MatrixStruct:
        """Return the struct for the library, valid while the tensors keep their storage.

        Raises:
            TypeError: if the tensors do not match the sizes.
        """
        addresses = (address_of(*part) for part in self._parts)
        return MatrixStruct(*addresses, self.inputs, self.outputs, self.bits)


def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> Weights | None:
    """Pack finite float32 weights (O, I) into 28 bits each, without loss.

    Returns:
        The packed weights, or None if the library is not loaded or does not support them.
    """
    outputs, inputs = weight.shape
    weight = weight.contiguous()
    if not Weights(weight, None, bias, inputs, outputs, 32).has_kernel or inputs % 64:
        return None
    assert LIBRARY is not None
    threads = torch.get_num_threads()
    start = address_of(weight, torch.float32, outputs * inputs)
    rows = torch.empty(outputs, 2, dtype=torch.int32, device="cpu")
    row_address = address_of(rows, torch.int32, 2 * outputs)
    vectors = LIBRARY.agi2_pack_rows(start, inputs, outputs, row_address, threads)
    if vectors < 0:  # beyond the 32-bit offsets of rows: 128 GB
        return None
    values = torch.empty(vectors, 8, dtype=torch.int32, device="cpu")
    packed = Weights(values, rows, bias, inputs, outputs, 28)
    LIBRARY.agi2_pack(start, byref(packed.struct()), threads)
    return packed


def unpack(packed: Weights, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Unpack the rows (N,) of a matrix, by default all, to float32: (N or O, I).

    Raises:
        IndexError: if a row is out of range.
    """
    assert LIBRARY is not None
    count = packed.outputs
    if rows is not None:
        rows, count = rows.to("cpu", torch.int64).contiguous(), rows.numel()
        if count and not 0 <= int(rows.min()) <= int(rows.max()) < packed.outputs:
            raise IndexError(f"a row is not below {packed.outputs}, the rows of the matrix")
    out = torch.empty(count, packed.inputs, dtype=torch.float32, device="cpu")
    LIBRARY.agi2_unpack(
        byref(packed.struct()),
        address_of(rows, torch.int64, count),
        count,
        address_of(out, torch.float32, count * packed.inputs),
        torch.get_num_threads(),
    )
    return out


class KernelLinear:
    """A linear layer computed by the library: (..., I) to (..., O).

    Args:
        weights: with `has_kernel` true.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._matrix = weights.struct()

    def supports(self, x: torch.Tensor) -> bool:
        """Return whether the library supports this input, and no gradient is needed."""
        has_gradient = x.requires_grad and torch.is_grad_enabled()
        return not has_gradient and is_plain(x, torch.float32)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to an input for which `supports` is true.

        Raises:
            TypeError: if the input is not supported, or its last dimension is not I.
            MemoryError: if an allocation fails.
        """
        assert LIBRARY is not None
        inputs, outputs = self._weights.inputs, self._weights.outputs
        rows = math.prod(x.shape[:-1])
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], outputs, dtype=torch.float32, device="cpu")
        failed = LIBRARY.agi2_linear(
            byref(self._matrix),
            rows,
            address_of(x, torch.float32, rows * inputs),
            address_of(out, torch.float32, rows * outputs),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for a product")
        return out
