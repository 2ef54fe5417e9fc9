"""Read a GGUF file: its metadata, and its tensors, dequantized to fp32.

The file is not trusted: every count, size and offset is validated against the size of the file
before anything is allocated for it.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import AGI2Error, safe_repr
from ..foreign_models import GGUF_MAGIC
from ..tokenization.tokenizer_json import MAX_TOKENS
from ..utils import human_bytes, plural
from .gguf_blocks import OTHER_TYPES, TYPES, TensorType, dequantize
from .model_file import ModelFile

_VERSIONS = (2, 3)
# Limits that bound time and memory; GPT-2's header has 2 MB, 27 keys and 149 tensors.
_MAX_HEADER_BYTES = 64_000_000
_MAX_ENTRIES = 100_000
_MAX_DIMENSIONS = 4
_ALIGNMENT = 32

# Formats of numbers in metadata, by the number of their type.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True)
class GGUFEntry:
    """Type, shape and position of a tensor in a file."""

    type: TensorType
    shape: tuple[int, ...]
    """In the order of PyTorch: the last dimension is contiguous."""
    start: int
    """Offset of its first byte in the file."""
    size: int
    """Size in bytes."""


class GGUFFile(ModelFile):
    """An open GGUF file of version 2 or 3, little-endian, as a context manager.

    Args:
        path: the file.

    Raises:
        AGI2Error: if it is missing, is not a GGUF file, is damaged, or has a tensor of a type that
            is not read.
    """

    def __init__(self, path: Path) -> None:
        self.metadata: dict[str, Any] = {}
        """Values by key: integers, floats, booleans, strings, lists of strings, NumPy arrays."""
        self.entries: dict[str, GGUFEntry] = {}
        """The tensors' entries by name."""
        super().__init__(path)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor in fp32 on the CPU; one in F32 is a copy-on-write memory map.

        Raises:
            AGI2Error: if the file cannot be read, or was truncated meanwhile.
        """
        entry = self.entries[name]
        try:
            data = np.memmap(self._file, np.uint8, "c", entry.start, (entry.size,))
        except (OSError, ValueError) as error:  # the latter if it was truncated
            raise self._unreadable(error) from error
        return torch.from_numpy(dequantize(data, entry.type)).view(entry.shape)

    def _damaged(self, reason: str) -> AGI2Error:
        return AGI2Error(f"{self.path} is damaged: {reason}")

    def _read_header(self) -> None:
        self._size = os.fstat(self._file.fileno()).st_size
        if self._file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise AGI2Error(f"{self.path} is not a GGUF file")
        version = self._number("I")
        if version & 0xFFFF == 0:
            raise AGI2Error(f"{self.path} is big-endian: only little-endian GGUF files are read")
        if version not in _VERSIONS:
            known = " and ".join(map(str, _VERSIONS))
            raise AGI2Error(
                f"{self.path} is of GGUF version {version}: versions {known} are read; convert the "
                "model again with a current llama.cpp"
            )
        tensors, keys = self._number("Q"), self._number("Q")
        if max(tensors, keys) > _MAX_ENTRIES:
            raise self._damaged(f"its header counts {keys:,} keys and {tensors:,} tensors")
        for _ in range(keys):
            self._read_key()
        found = [self._read_tensor() for _ in range(tensors)]
        self._place_tensors(found)

    def _bytes(self, count: int) -> bytes:
        """Read the next bytes of the header."""
        if self._file.tell() + count > min(self._size, _MAX_HEADER_BYTES):
            where = "the file" if self._size < _MAX_HEADER_BYTES else human_bytes(_MAX_HEADER_BYTES)
            raise self._damaged(f"its header is longer than {where}")
        data = self._file.read(count)
        if len(data) < count:
            raise self._damaged("it was cut short while it was read")
        return data

    def _number(self, format: str) -> Any:
        format = f"<{format}"
        return struct.unpack(format, self._bytes(struct.calcsize(format)))[0]

    def _string(self) -> str:
        try:
            return self._bytes(self._number("Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged("a string in its header is not UTF-8") from error

    def _read_key(self) -> None:
        key = self._string()
        value = self._value(key, self._number("I"))
        if key in self.metadata:
            raise self._damaged(f"its header has {safe_repr(key)} twice")
        self.metadata[key] = value

    def _value(self, key: str, type: int) -> Any:
        if type in _NUMBERS:
            return self._number(_NUMBERS[type])
        if type == _STRING:
            return self._string()
        if type == _BOOL and (value := self._number("B")) in (0, 1):
            return bool(value)
        if type == _ARRAY:
            return self._array(key)
        raise self._damaged(f"{safe_repr(key)} is of no type that GGUF has")

    def _array(self, key: str) -> list[str] | np.ndarray:
        type, count = self._number("I"), self._number("Q")
        if type == _STRING:
            if count > MAX_TOKENS:
                raise self._damaged(f"{safe_repr(key)} has {count:,} strings")
            return [self._string() for _ in range(count)]
        format = "B" if type == _BOOL else _NUMBERS.get(type)
        if format is None:
            raise self._damaged(f"{safe_repr(key)} is an array of no type that is read")
        dtype = np.dtype(f"<{format}")
        return np.frombuffer(self._bytes(count * dtype.itemsize), dtype)

    def _read_tensor(self) -> tuple[str, GGUFEntry]:
        """Read the entry of a tensor; its offset is that in the data section."""
        name, count = self._string(), self._number("I")
        if not 1 <= count <= _MAX_DIMENSIONS:
            raise self._damaged(f"{safe_repr(name)} has {plural(count, 'dimension')}")
        shape = tuple(self._number("Q") for _ in range(count))[::-1]
        type, offset = self._number("I"), self._number("Q")
        if type not in TYPES:
            raise AGI2Error(
                f"{self.path}: {name} is of the type {OTHER_TYPES.get(type, type)}: AGI2 reads "
                + ", ".join(each.name for each in TYPES.values())
            )
        blocks, rest = divmod(shape[-1], TYPES[type].values)
        # Python's integers do not overflow: sizes are compared with the file's afterwards.
        size = math.prod(shape[:-1]) * blocks * TYPES[type].bytes
        if rest or not size:
            raise self._damaged(f"{safe_repr(name)} has the shape {shape} in {TYPES[type].name}")
        return name, GGUFEntry(TYPES[type], shape, offset, size)

    def _place_tensors(self, found: list[tuple[str, GGUFEntry]]) -> None:
        """Validate that the tensors follow each other within the file, each aligned."""
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment = {safe_repr(alignment)}")
        header = _aligned(self._file.tell(), alignment)
        end = header
        for name, entry in sorted(found, key=lambda item: item[1].start):
            start = header + entry.start
            if start != _aligned(end, alignment):
                raise self._damaged("its tensors overlap, leave gaps or are not aligned")
            end = start + entry.size
            if name in self.entries:
                raise self._damaged(f"it has the tensor {safe_repr(name)} twice")
            self.entries[name] = GGUFEntry(entry.type, entry.shape, start, entry.size)
        if end > self._size:
            raise self._damaged(f"it has {self._size:,} bytes, its header describes {end:,}")


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
