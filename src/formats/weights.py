"""Load and save safetensors files.

A file is opened once, so that header and tensors are consistent even if another process replaces
the file meanwhile. The header is validated against the file size before anything is allocated.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import AGI2Error
from ..utils import parse_json
from .model_file import ModelFile

# Maximum header size in bytes, as in the safetensors library.
_MAX_HEADER_BYTES = 100_000_000
# Minimum size in bytes of a memory-mapped tensor: a smaller one is not worth a mapping.
_MIN_MAPPED_BYTES = 1 << 16

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorEntry:
    """Type, shape and position of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""
    size: int
    """Size in bytes."""


class SafetensorsFile(ModelFile):
    """An open safetensors file, as a context manager.

    Args:
        path: the file.

    Raises:
        AGI2Error: if it is missing, is not a regular file, or its header is invalid.
    """

    def __init__(self, path: Path) -> None:
        self.metadata: dict[str, str] = {}
        """The `__metadata__` of the header."""
        self.entries: dict[str, TensorEntry] = {}
        """The tensors' entries by name."""
        super().__init__(path)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Load all tensors on the CPU, large ones as copy-on-write memory maps.

        Each tensor has a mapping of its own, so its memory is freed with it.

        Raises:
            AGI2Error: if the file cannot be read, or was truncated meanwhile.
        """
        try:
            return {name: self._tensor(entry) for name, entry in self.entries.items()}
        except OSError as error:
            raise self._unreadable(error) from error

    def _corrupt_error(self, reason: object) -> AGI2Error:
        return AGI2Error(f"{self.path} is damaged: {reason}")

    def _read_header(self) -> None:
        self._descriptor = self._file.fileno()
        size = os.fstat(self._descriptor).st_size
        length = int.from_bytes(self._bytes(0, 8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise self._corrupt_error("its header is longer than the file")
        header = parse_json(bytes(self._bytes(8, length)), f"{self.path} is damaged: its header")
        if not isinstance(header, dict):
            raise self._corrupt_error("its header is not a JSON object")
        notes = header.pop("__metadata__", {})
        if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
            raise self._corrupt_error("its metadata is not made of strings")
        self.metadata = notes
        self.entries = {name: self._entry(name, each, 8 + length) for name, each in header.items()}
        end = 8 + length
        for entry in sorted(self.entries.values(), key=lambda entry: (entry.start, entry.size)):
            if entry.start != end:
                raise self._corrupt_error("its tensors overlap, or leave gaps")
            end += entry.size
        if end != size:
            raise self._corrupt_error(f"it has {size:,} bytes, its header describes {end:,}")

    def _entry(self, name: str, entry: Any, offset: int) -> TensorEntry:
        """Validate a tensor's entry in the header; `offset` is where the data section starts."""
        entry = entry if isinstance(entry, dict) else {}
        dtype, shape, data_offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise self._corrupt_error(f"{name} is of the unknown type {dtype!r}")
        if not (_are_sizes(shape) and _are_sizes(data_offsets) and len(data_offsets) == 2):
            raise self._corrupt_error(f"{name} has no shape, or no position in the file")
        size = math.prod(shape) * _DTYPES[dtype].itemsize
        if data_offsets[1] - data_offsets[0] != size:
            raise self._corrupt_error(f"{name} has another size than its shape")
        return TensorEntry(_DTYPES[dtype], tuple(shape), offset + data_offsets[0], size)

    def _bytes(self, start: int, count: int) -> bytearray:
        """Read `count` bytes from `start`; fewer at the end of the file."""
        os.lseek(self._descriptor, start, os.SEEK_SET)
        data = bytearray()
        while len(data) < count and (part := os.read(self._descriptor, count - len(data))):
            data += part
        return data

    def _tensor(self, entry: TensorEntry) -> torch.Tensor:
        if not math.prod(entry.shape):
            return torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        buffer: bytearray | mmap.mmap
        offset = 0
        # A misaligned tensor is copied: the CPU kernels in C load elements at aligned addresses.
        if entry.size < _MIN_MAPPED_BYTES or entry.start % entry.dtype.itemsize:
            buffer = self._bytes(entry.start, entry.size)
            if len(buffer) < entry.size:
                raise self._corrupt_error("it was cut short while it was read")
        else:
            offset = entry.start % mmap.ALLOCATIONGRANULARITY
            buffer = mmap.mmap(
                self._descriptor,
                offset + entry.size,
                access=mmap.ACCESS_COPY,  # private: in-place changes do not reach the file
                offset=entry.start - offset,
            )
        count = math.prod(entry.shape)
        flat = torch.frombuffer(buffer, dtype=entry.dtype, count=count, offset=offset)
        return flat.view(entry.shape)


def _are_sizes(value: Any) -> bool:
    """Return whether this is a list of non-negative integers within PyTorch's limits."""
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(size) is int and 0 <= size < 2**48 for size in value)
        and math.prod(value) < 2**60
    )


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load all tensors of a safetensors file.

    Raises:
        AGI2Error: if it is missing or corrupt.
    """
    with SafetensorsFile(path) as file:
        return file.tensors()


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Save tensors to a safetensors file.

    Args:
        tensors: tensors by name.
        path: the file.
        metadata: `__metadata__` of the header. Use one key at most: the library writes several in
            random order, so that equal tensors would not give identical files.

    Raises:
        OSError: if the file cannot be written: no permission, or no space left.
    """
    path.touch()  # for its mode under the umask
    mode = path.stat().st_mode
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error).removeprefix("Error while serializing: ")) from error
    path.chmod(mode)  # undo the library's mode 0600
