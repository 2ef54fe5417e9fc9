"""Hashes of shingles in C: see `shingles.c`.

It is available if a C compiler was found when the package was installed; otherwise `LIBRARY` is
`None`.
"""

from __future__ import annotations

import ctypes
import os
import sysconfig
from ctypes import c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

import numpy as np


def load(folder: Path) -> ctypes.CDLL | None:
    """Load the library from a folder; return `None` if it is missing."""
    try:
        library = ctypes.CDLL(str(folder / f"_shingles{sysconfig.get_config_var('EXT_SUFFIX')}"))
    except OSError:
        return None
    address = c_void_p
    library.agi2_shingles.restype = library.agi2_carried_bytes.restype = c_int64
    library.agi2_shingles.argtypes = (
        *(address, c_int64, c_int64, address, c_uint32, c_uint64),
        *(address, address, address, address),
    )
    return library


# AGI2_NATIVE is the folder of another build: `tests/sanitize.py` makes one with sanitizers.
LIBRARY = load(Path(os.environ.get("AGI2_NATIVE") or Path(__file__).parent))


class ShingleHasher:
    """Hashes the shingles of a text that comes in parts.

    Args:
        kept: mask, (N + 1,), of the code points that count; the last is for all from N on.
    """

    def __init__(self, kept: np.ndarray) -> None:
        assert LIBRARY is not None
        self._kept = np.ascontiguousarray(kept, np.uint8)
        self._carried = np.zeros(LIBRARY.agi2_carried_bytes(), np.uint8)
        self._outputs = [np.empty(0, dtype) for dtype in (np.uint64, np.int64, np.int64)]

    def add(
        self, codes: np.ndarray, position: int, threshold: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hash the shingles that end in the next part of the text.

        Args:
            codes: its code points, (N,) uint32.
            position: offset of the first one.
            threshold: the greatest hash that is kept.

        Returns:
            Hashes, offsets of the first character and offsets after the last one, (K,) each.
        """
        assert LIBRARY is not None
        codes = np.ascontiguousarray(codes, np.uint32)
        if len(self._outputs[0]) < len(codes):
            self._outputs = [np.empty(len(codes), each.dtype) for each in self._outputs]
        count = LIBRARY.agi2_shingles(
            codes.ctypes.data,
            len(codes),
            position,
            self._kept.ctypes.data,
            len(self._kept) - 1,
            threshold,
            self._carried.ctypes.data,
            *(each.ctypes.data for each in self._outputs),
        )
        hashes, starts, ends = (each[:count].copy() for each in self._outputs)
        return hashes, starts, ends
