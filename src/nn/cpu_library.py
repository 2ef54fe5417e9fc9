"""The compiled library of `cpu_kernels.c`: its structs, loading it, and addresses of tensors.

It is available if a C compiler was found when the package was installed; otherwise PyTorch computes
the same, more slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sysconfig
from collections.abc import Sequence
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


def variants() -> list[str]:
    """Return the names of the libraries that this processor can run, the fastest first.

    `ATEN_CPU_CAPABILITY=avx2` limits them, like PyTorch's own kernels.
    """
    if platform.machine() in ("aarch64", "arm64"):
        return [*(["_cpu_kernels_dotprod"] if _has_dot_product() else []), "_cpu_kernels"]
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["_cpu_kernels"]
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and torch.cpu._is_vnni_supported():
        return ["_cpu_kernels_avx512", "_cpu_kernels"]
    return ["_cpu_kernels"] if capability in ("AVX2", "AVX512") else []


def _has_dot_product() -> bool:
    """Return whether an Arm processor multiplies and adds four int8 at once (all of Apple do)."""
    if platform.system() == "Darwin":
        return True
    auxiliary = getattr(ctypes.CDLL(None), "getauxval", None)  # of Linux
    capabilities, dot_product = 16, 1 << 20  # AT_HWCAP, HWCAP_ASIMDDP
    return auxiliary is not None and bool(auxiliary(capabilities) & dot_product)


def load(folder: Path, names: Sequence[str] | None = None) -> ctypes.CDLL | None:
    """Load a library from a folder; return None if there is none that this processor can run.

    Args:
        folder: where the libraries are.
        names: those to choose from; the first that loads is taken. By default `variants`.
    """
    library = None
    for name in variants() if names is None else names:
        # Not built, or PyTorch has not loaded OpenMP, which it is not linked with.
        with contextlib.suppress(OSError):
            path = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
            library = ctypes.CDLL(str(path))
            break
    if library is None:
        return None
    matrix, address, size = POINTER(MatrixStruct), c_void_p, c_int64
    for name, result, arguments in (
        ("agi2_linear", c_int, (matrix, size, address, address)),
        ("agi2_layers", c_int, (POINTER(ModelStruct), *[address] * 5, *[size] * 3)),
        ("agi2_pack_rows", c_int64, (address, size, size, address)),
        ("agi2_pack", None, (address, matrix)),
        ("agi2_unpack", None, (matrix, address, size, address)),
        ("agi2_gelu", None, (size, address, address, c_int)),
        ("agi2_gelu_backward", None, (size, address, address, address, c_int)),
        ("agi2_dropout", None, (size, address, address, c_int, c_float, address, c_int)),
        ("agi2_softmax_gradient", None, (size, size, address, address, address)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, (*arguments, c_int)  # c_int: threads
    return library


# AGI2_NATIVE is the folder of another build: `tests/sanitize.py` makes one with sanitizers.
FOLDER = Path(os.environ.get("AGI2_NATIVE") or Path(__file__).parent)
LIBRARY = load(FOLDER)


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
