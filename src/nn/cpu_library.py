"""The compiled library of `cpu_kernels.c`: its structs, loading it, and addresses of tensors.

It is available if a C compiler was found when the package was installed; otherwise PyTorch computes
the same, more slowly.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sysconfig
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import torch


class MatrixStruct(ctypes.Structure):
    """A matrix and its bias, in a layout of `bits` bits a weight."""

    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("bits", c_int32),
    )


class LayerStruct(ctypes.Structure):
    """One transformer layer: its matrices, and the weight and bias of its layer norms."""

    _fields_ = (
        ("qkv", MatrixStruct),
        ("proj", MatrixStruct),
        ("expand", MatrixStruct),
        ("contract", MatrixStruct),
        ("attention_norm", c_void_p * 2),
        ("ffn_norm", c_void_p * 2),
    )


class ModelStruct(ctypes.Structure):
    """All layers of a model."""

    _fields_ = (
        ("layers", POINTER(LayerStruct)),
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
    matrix, address, size = POINTER(MatrixStruct), c_void_p, c_int64
    for name, result, arguments in (
        ("agi2_linear", c_int, (matrix, size, address, address)),
        ("agi2_layers", c_int, (POINTER(ModelStruct), *[address] * 5, *[size] * 3)),
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


def is_plain(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor is strided, on the CPU, not sharded, and of this dtype."""
    return (
        tensor.dtype == dtype
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not hasattr(tensor, "full_tensor")  # not a DTensor
    )


def address_of(tensor: torch.Tensor | None, dtype: torch.dtype, count: int) -> int | None:
    """Return the address of a tensor's `count` elements; the only source of the library's pointers.

    Raises:
        TypeError: if dtype, device, size or strides are not as expected: a bug in the caller.
    """
    if tensor is None:
        return None
    address = tensor.data_ptr() if is_plain(tensor, dtype) and tensor.is_contiguous() else 0
    if tensor.numel() != count or (count and not address) or address % tensor.element_size():
        raise TypeError(
            f"the library needs {count} contiguous elements of {dtype} on the CPU, not "
            f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device} with strides "
            f"{tensor.stride() if tensor.layout == torch.strided else None}"
        )
    return address
