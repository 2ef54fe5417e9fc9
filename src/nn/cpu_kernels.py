"""Bindings of the CPU kernels: decode steps, quantized matmul and GELU. See `cpu_kernels.c`.

They are available if a C compiler was found when the package was installed; otherwise PyTorch
computes the same, more slowly. N rows, I input features, O output features.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sysconfig
from collections.abc import Sequence
from ctypes import POINTER, byref, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .kv_cache import KVCache

MAX_KERNEL_TOKENS = 128
"""Maximum number of rows for which the kernels are faster than PyTorch with float32 weights.

Quantized weights always use the kernels, this many rows at a time: PyTorch's attention differs in
the last bits, which can move an activation to another quantization level.
"""
GROUP = 32
"""int4 weights, consecutive in a row of a matrix, that share a scale and a minimum."""
ACTIVATIONS = ("none", "gelu_tanh", "gelu", "relu", "silu")
"""In the order of the enum in `cpu_kernels.c`."""


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("bits", c_int32),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", _Matrix),
        ("proj", _Matrix),
        ("expand", _Matrix),
        ("contract", _Matrix),
        ("attention_norm", c_void_p * 2),
        ("ffn_norm", c_void_p * 2),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", POINTER(_Layer)),
        ("n_layers", c_int64),
        ("channels", c_int64),
        ("heads", c_int64),
        ("activation", c_int32),
        ("pre_norm", c_int32),
        ("epsilon", c_float),
    )


def load(folder: Path) -> ctypes.CDLL | None:
    """Load the library from a folder; return None if it is missing or this CPU cannot run it."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    if is_x86 and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    try:
        library = ctypes.CDLL(str(folder / f"_cpu_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"))
    except OSError:  # not built, or PyTorch has not loaded OpenMP, which it is not linked with
        return None
    matrix, address, size = POINTER(_Matrix), c_void_p, c_int64
    for name, result, arguments in (
        ("agi2_linear", c_int, (matrix, size, address, address)),
        ("agi2_layers", c_int, (POINTER(_Model), *[address] * 4, *[size] * 4)),
        ("agi2_pack_rows", c_int64, (address, size, size, address)),
        ("agi2_pack", None, (address, matrix)),
        ("agi2_unpack", None, (matrix, address, size, address)),
        ("agi2_gelu", None, (size, address, address)),
        ("agi2_gelu_backward", None, (size, address, address, address)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, (*arguments, c_int)  # c_int: threads
    return library


# AGI2_NATIVE is the folder of another build: `tests/sanitize.py` makes one with sanitizers.
LIBRARY = load(Path(os.environ.get("AGI2_NATIVE") or Path(__file__).parent))


def _is_plain(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor is strided, on the CPU, not sharded, and of this dtype."""
    return (
        tensor.dtype == dtype
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not hasattr(tensor, "full_tensor")  # not a DTensor
    )


def _address(tensor: torch.Tensor | None, dtype: torch.dtype, count: int) -> int | None:
    """Return the address of a tensor's `count` elements; the only source of the library's pointers.

    Raises:
        TypeError: if dtype, device, size or strides are not as expected: a bug in the caller.
    """
    if tensor is None:
        return None
    address = tensor.data_ptr() if _is_plain(tensor, dtype) and tensor.is_contiguous() else 0
    if tensor.numel() != count or (count and not address) or address % tensor.element_size():
        raise TypeError(
            f"the library needs {count} numbers of {dtype} in one piece on the CPU, not "
            f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device} with strides "
            f"{tensor.stride() if tensor.layout == torch.strided else None}"
        )
    return address


class Gelu(torch.autograd.Function):
    """GELU with the tanh approximation, in a third of PyTorch's time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Apply GELU to a tensor of any shape for which `suits` is true."""
        assert LIBRARY is not None
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        addresses = (_address(part, torch.float32, x.numel()) for part in (x, out))
        LIBRARY.agi2_gelu(x.numel(), *addresses, torch.get_num_threads())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the input."""
        assert LIBRARY is not None
        (x,) = ctx.saved_tensors
        grad = grad.contiguous()
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        addresses = (_address(part, torch.float32, x.numel()) for part in (x, grad, out))
        LIBRARY.agi2_gelu_backward(x.numel(), *addresses, torch.get_num_threads())
        return out

    @staticmethod
    def suits(x: torch.Tensor) -> bool:
        """Return whether the library is loaded and supports this tensor."""
        is_compiling = torch.compiler.is_compiling()
        return LIBRARY is not None and not is_compiling and _is_plain(x, torch.float32)


class Weights(NamedTuple):
    """A matrix (O, I) in a layout described in `cpu_kernels.c`, and the bias (O,) of its layer."""

    values: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None
    inputs: int
    outputs: int
    bits: int

    @property
    def has_kernel(self) -> bool:
        """Whether the library is loaded and supports the matrix."""
        together = {32: 8, 28: 64, 8: 16, 4: 64}[self.bits]  # weights per iteration of a kernel
        has_size = self.inputs > 0 and self.outputs > 0 and self.inputs % together == 0
        parts = (_is_plain(part, of) for part, of, _ in self._parts if part is not None)
        is_complete = (self.scale is None) == (self.bits == 32)
        return LIBRARY is not None and has_size and is_complete and all(parts)

    @property
    def _parts(self) -> tuple[tuple[torch.Tensor | None, torch.dtype, int], ...]:
        """Each tensor, with the dtype and the number of elements that the library expects."""
        numbers, rows = self.outputs * self.inputs, self.outputs
        values, count, scale, scales = {
            32: (torch.float32, numbers, torch.float32, 0),
            # The size of packed rows depends on the weights.
            28: (torch.int32, self.values.numel(), torch.int32, 2 * rows),
            8: (torch.int8, numbers, torch.float32, rows),
            4: (torch.uint8, numbers // 2, torch.int32, numbers // GROUP),
        }[self.bits]
        bias = (self.bias, torch.float32, rows)
        return (self.values, values, count), (self.scale, scale, scales), bias

    def struct(self) -> _Matrix:
        """Return the struct for the library, valid while the tensors keep their storage.

        Raises:
            TypeError: if the tensors do not match the sizes.
        """
        addresses = (_address(*part) for part in self._parts)
        return _Matrix(*addresses, self.inputs, self.outputs, self.bits)


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
    start = _address(weight, torch.float32, outputs * inputs)
    rows = torch.empty(outputs, 2, dtype=torch.int32, device="cpu")
    place = _address(rows, torch.int32, 2 * outputs)
    vectors = LIBRARY.agi2_pack_rows(start, inputs, outputs, place, threads)
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
        _address(rows, torch.int64, count),
        count,
        _address(out, torch.float32, count * packed.inputs),
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

    def suits(self, x: torch.Tensor) -> bool:
        """Return whether the library supports this input, and no gradient is needed."""
        has_gradient = x.requires_grad and torch.is_grad_enabled()
        return not has_gradient and _is_plain(x, torch.float32)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to an input for which `suits` is true.

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
            _address(x, torch.float32, rows * inputs),
            _address(out, torch.float32, rows * outputs),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for a product")
        return out


class Norm(NamedTuple):
    """A layer norm's weight (C,) and bias (C,), each optional."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    epsilon: float

    @classmethod
    def of(cls, module: nn.Module, width: int) -> Norm | None:
        """Return the parameters of a module, or None if it is not a supported `nn.LayerNorm`.

        They are kept alive here: parameters assigned to the module later are not used.
        """
        if type(module) is not nn.LayerNorm or module.normalized_shape != (width,):
            return None
        weight, bias = (
            None if part is None else part.detach().contiguous()
            for part in (module.weight, module.bias)
        )
        is_plain = all(part is None or _is_plain(part, torch.float32) for part in (weight, bias))
        return cls(weight, bias, module.eps) if is_plain else None


class LayerWeights(NamedTuple):
    """The weights of one transformer layer."""

    qkv: Weights
    proj: Weights
    expand: Weights
    contract: Weights
    attention_norm: Norm
    ffn_norm: Norm

    @property
    def has_kernel(self) -> bool:
        """Whether the library supports every matrix, and their shapes match."""
        width, hidden = self.proj.inputs, self.expand.outputs
        shapes = [(part.inputs, part.outputs) for part in self[:4]]
        fit = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
        return shapes == fit and all(part.has_kernel for part in self[:4])


class KernelBackend:
    """CPU decode backend for all layers of a model; see `GPT2Model.decode_backend`.

    Args:
        layers: with `has_kernel` true, all of one shape and format.
        n_heads: attention heads of a layer; divides the width.
        activation: one of `ACTIVATIONS`.
        pre_norm: pre-norm (GPT-2) or post-norm.
    """

    def __init__(
        self, layers: Sequence[LayerWeights], n_heads: int, activation: str, pre_norm: bool
    ) -> None:
        self._held = list(layers)  # keeps alive what the pointers below point to
        first = layers[0]
        width = first.proj.inputs
        array = (_Layer * len(layers))()
        for place, layer in zip(array, layers, strict=True):
            for name in ("qkv", "proj", "expand", "contract"):
                setattr(place, name, getattr(layer, name).struct())
            for name in ("attention_norm", "ffn_norm"):
                norm = getattr(layer, name)
                parts = (_address(part, torch.float32, width) for part in norm[:2])
                setattr(place, name, (c_void_p * 2)(*parts))
        self._rounded = first.qkv.bits < 28
        self._model = _Model(
            *(array, len(layers), width, n_heads),
            *(ACTIVATIONS.index(activation), pre_norm, first.ffn_norm.epsilon),
        )

    def __call__(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None, cache: KVCache
    ) -> torch.Tensor | None:
        """Return the layers' output (B, T, C), or None if PyTorch must compute it.

        Args:
            x: embeddings of the new tokens, (B, T, C); overwritten.
            attention_mask: (B or 1, S), true for text and false for left padding.
            cache: the new keys and values are appended to it.
        """
        texts, tokens, _ = x.shape
        if not _is_plain(x, torch.float32) or torch.is_grad_enabled():
            return None
        if not _is_plain(cache.layers[0].keys, torch.float32) or x.numel() == 0:
            return None
        starts = _starts(attention_mask, texts)
        if starts is None or (texts * tokens > MAX_KERNEL_TOKENS and not self._rounded):
            return None
        parts = x.split(max(1, MAX_KERNEL_TOKENS // texts), dim=1)
        return torch.cat([self._read(part.contiguous(), starts, cache) for part in parts], dim=1)

    def _read(self, x: torch.Tensor, starts: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Run the layers in place on new tokens (B, T, C) of sequences that begin at `starts`."""
        assert LIBRARY is not None
        texts, tokens, _ = x.shape
        held, width = cache.length, self._model.channels
        held_numbers = texts * cache.capacity * width
        if len(cache.layers) != len(self._held):
            raise TypeError(f"a cache of {len(cache.layers)} layers, not {len(self._held)}")
        addresses = c_void_p * len(self._held)
        keys, values = (
            addresses(*(_address(part, torch.float32, held_numbers) for part in parts))
            for parts in zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
        )
        # Raises if the tokens do not fit, before the library writes to the buffers.
        for layer in cache.layers:
            layer.extend(tokens)
        failed = LIBRARY.agi2_layers(
            byref(self._model),
            _address(x, torch.float32, texts * tokens * width),
            *(keys, values, _address(starts, torch.int64, texts)),
            *(texts, tokens, held, cache.capacity, torch.get_num_threads()),
        )
        if failed:
            raise MemoryError("no memory for a pass of the model")
        return x


def _starts(attention_mask: torch.Tensor | None, texts: int) -> torch.Tensor | None:
    """Return the padding before each sequence (B,), or None if the mask is not left padding."""
    if attention_mask is None:
        return torch.zeros(texts, dtype=torch.int64, device="cpu")
    if attention_mask.dim() != 2:
        return None
    is_text = attention_mask.bool()
    if bool((is_text[:, :-1] & ~is_text[:, 1:]).any()) or not bool(is_text[:, -1].all()):
        return None
    return (~is_text).sum(dim=1).expand(texts).contiguous()
