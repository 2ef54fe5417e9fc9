"""The compiled part: a pass of the model over a few tokens, and GELU. See `native.c`.

It is there where a C compiler was at hand when this package was installed. Elsewhere PyTorch does
the same, more slowly. N rows, I inputs and O outputs of a matrix.
"""

from __future__ import annotations

import ctypes
import platform
import sysconfig
from collections.abc import Sequence
from ctypes import POINTER, byref, c_float, c_int, c_int32, c_int64, c_long, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .kv_cache import KVCache

FEW = 128
"""Rows of inputs up to which this is faster than PyTorch's products of whole weights.

Of rounded weights as many are read at a time, but never by PyTorch: what its attention makes is the
same to the last bit but one, and that moves a rounded input to the next level.
"""
ACTIVATIONS = ("none", "gelu_tanh", "gelu", "relu", "silu")
"""In the order of `native.c`."""


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
    """The library in a folder, where there is one that this processor and system can run."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    if is_x86 and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    try:
        library = ctypes.CDLL(str(folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"))
    except OSError:  # not built, or without the OpenMP that PyTorch brings elsewhere
        return None
    library.agi2_linear.argtypes = (POINTER(_Matrix), c_long, c_void_p, c_void_p, c_int)
    library.agi2_layers.argtypes = (
        *(POINTER(_Model), c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_long, c_long, c_long, c_long, c_int),
    )
    library.agi2_pack_rows.argtypes = (c_void_p, c_long, c_long, c_void_p, c_int)
    library.agi2_pack_rows.restype = c_long
    library.agi2_pack.argtypes = (c_void_p, POINTER(_Matrix), c_int)
    library.agi2_unpack.argtypes = (POINTER(_Matrix), c_void_p, c_long, c_void_p, c_int)
    library.agi2_gelu.argtypes = (c_long, c_void_p, c_void_p, c_int)
    library.agi2_gelu_backward.argtypes = (c_long, c_void_p, c_void_p, c_void_p, c_int)
    return library


LIBRARY = load(Path(__file__).parent)


class Gelu(torch.autograd.Function):
    """GELU in GPT-2's form, in a third of PyTorch's time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Of numbers that `suits` allows, of any shape."""
        assert LIBRARY is not None
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        LIBRARY.agi2_gelu(x.numel(), x.data_ptr(), out.data_ptr(), torch.get_num_threads())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """The inputs' gradients."""
        assert LIBRARY is not None
        (x,) = ctx.saved_tensors
        grad = grad.contiguous()
        out = torch.empty_like(x)
        addresses = x.data_ptr(), grad.data_ptr(), out.data_ptr()
        LIBRARY.agi2_gelu_backward(x.numel(), *addresses, torch.get_num_threads())
        return out

    @staticmethod
    def suits(x: torch.Tensor) -> bool:
        """Whether the library is there and can read this."""
        is_plain = x.dtype == torch.float32 and x.device.type == "cpu"
        return LIBRARY is not None and is_plain and not torch.compiler.is_compiling()


class Weights(NamedTuple):
    """A matrix (O, I) in the layout that `native.c` describes, and the bias of its product."""

    values: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None
    inputs: int
    outputs: int
    bits: int

    @property
    def is_native(self) -> bool:
        """Whether the library is there and can read the matrix."""
        whole = {32: 8, 28: 64, 8: 16, 4: 64}[self.bits]  # numbers that are read at once
        is_float = self.bits < 32 or self.values.dtype == torch.float32
        return LIBRARY is not None and self.inputs % whole == 0 and is_float

    def struct(self) -> _Matrix:
        """For the library: valid as long as the tensors live."""
        addresses = (_address(part) for part in (self.values, self.scale, self.bias))
        return _Matrix(*addresses, self.inputs, self.outputs, self.bits)


def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> Weights | None:
    """Finite weights (O, I) in 28 bits each, exactly, or None where that is not to be had."""
    outputs, inputs = weight.shape
    if not Weights(weight, None, None, inputs, outputs, 32).is_native or inputs % 64:
        return None
    assert LIBRARY is not None
    weight, threads = weight.contiguous(), torch.get_num_threads()
    rows = torch.empty(outputs, 2, dtype=torch.int32)
    vectors = LIBRARY.agi2_pack_rows(weight.data_ptr(), inputs, outputs, rows.data_ptr(), threads)
    packed = Weights(torch.empty(vectors, 8, dtype=torch.int32), rows, bias, inputs, outputs, 28)
    LIBRARY.agi2_pack(weight.data_ptr(), byref(packed.struct()), threads)
    return packed


def unpack(packed: Weights, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Those of the rows (N,) of a matrix, or all of them, in 32 bits: (N or O, I)."""
    assert LIBRARY is not None
    count = packed.outputs if rows is None else len(rows)
    out = torch.empty(count, packed.inputs)
    rows = None if rows is None else rows.contiguous()
    LIBRARY.agi2_unpack(
        *(byref(packed.struct()), _address(rows), count, out.data_ptr(), torch.get_num_threads())
    )
    return out


class NativeLinear:
    """The product of a few rows (..., I) with weights: (..., O).

    Args:
        weights: native ones.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._matrix = weights.struct()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 on the CPU, without a gradient."""
        assert LIBRARY is not None
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], self._weights.outputs)
        rows = x.numel() // self._weights.inputs
        failed = LIBRARY.agi2_linear(
            byref(self._matrix), rows, x.data_ptr(), out.data_ptr(), torch.get_num_threads()
        )
        if failed:
            raise MemoryError("no memory for a product")
        return out


class LayerWeights(NamedTuple):
    """What one layer of the model consists of."""

    qkv: Weights
    proj: Weights
    expand: Weights
    contract: Weights
    attention_norm: nn.LayerNorm
    ffn_norm: nn.LayerNorm


class NativeLayers:
    """All layers of a model, for a few tokens at a time; see `GPT2Model.few_tokens`.

    Args:
        layers: of native weights.
        n_heads: of each layer.
        activation: of `ACTIVATIONS`.
        pre_norm: where the norms stand.
    """

    def __init__(
        self, layers: Sequence[LayerWeights], n_heads: int, activation: str, pre_norm: bool
    ) -> None:
        self._held = list(layers)  # what the addresses below point to
        array = (_Layer * len(layers))()
        for place, layer in zip(array, layers, strict=True):
            for name in ("qkv", "proj", "expand", "contract"):
                setattr(place, name, getattr(layer, name).struct())
            for name in ("attention_norm", "ffn_norm"):
                norm = getattr(layer, name)
                setattr(place, name, (c_void_p * 2)(_address(norm.weight), _address(norm.bias)))
        first = layers[0]
        self._rounded = first.qkv.bits < 28
        self._model = _Model(
            *(array, len(layers), first.proj.inputs, n_heads),
            *(ACTIVATIONS.index(activation), pre_norm, first.ffn_norm.eps),
        )

    def __call__(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None, cache: KVCache
    ) -> torch.Tensor | None:
        """What the layers make of embeddings (B, T, C), or None where that is PyTorch's work.

        Args:
            x: of the new tokens; written over.
            attention_mask: (B or 1, S), true for text and false for padding before it.
            cache: gets the new keys and values.
        """
        texts, tokens, _ = x.shape
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
            return None
        starts = _starts(attention_mask, texts)
        if starts is None or (texts * tokens > FEW and not self._rounded):
            return None
        parts = x.split(max(1, FEW // texts), dim=1)
        return torch.cat([self._read(part.contiguous(), starts, cache) for part in parts], dim=1)

    def _read(self, x: torch.Tensor, starts: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Some new tokens (B, T, C), written over, of texts that begin at `starts` (B,)."""
        assert LIBRARY is not None
        texts, tokens, _ = x.shape
        held = cache.length
        addresses = c_void_p * len(cache.layers)
        for layer in cache.layers:
            layer.extend(tokens)
        failed = LIBRARY.agi2_layers(
            *(byref(self._model), x.data_ptr()),
            addresses(*(layer.keys.data_ptr() for layer in cache.layers)),
            addresses(*(layer.values.data_ptr() for layer in cache.layers)),
            *(starts.data_ptr(), texts, tokens, held, cache.capacity, torch.get_num_threads()),
        )
        if failed:
            raise MemoryError("no memory for a pass of the model")
        return x


def _starts(attention_mask: torch.Tensor | None, texts: int) -> torch.Tensor | None:
    """Where each text begins (B,), or None where what is masked is not padding before it."""
    if attention_mask is None:
        return torch.zeros(texts, dtype=torch.long)
    if attention_mask.dim() != 2:
        return None
    is_text = attention_mask.bool()
    if bool((is_text[:, :-1] & ~is_text[:, 1:]).any()) or not bool(is_text[:, -1].all()):
        return None
    return (~is_text).sum(dim=1).expand(texts).contiguous()


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
