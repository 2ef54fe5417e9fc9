"""Hashes of documents and of their shingles in C: see `shingles.c`.

It is available if a C compiler was found when the package was installed; otherwise `LIBRARY` is
`None`. The GIL is released in every call.

D documents, P pieces of them.
"""

from __future__ import annotations

import ctypes
import os
import sysconfig
from ctypes import c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

import numpy as np

from .bpe_library import array_address


def load(folder: Path) -> ctypes.CDLL | None:
    """Load the library from a folder; return `None` if it is missing."""
    try:
        library = ctypes.CDLL(str(folder / f"_shingles{sysconfig.get_config_var('EXT_SUFFIX')}"))
    except OSError:
        return None
    address, size = c_void_p, c_int64
    for name, result, arguments in (
        (
            "scan",
            size,
            (address, c_char_p, size, address, address, size, address, c_uint32, c_uint64)
            + (address,) * 7,
        ),
        ("scan_bytes", size, ()),
        ("sketches", None, (address, size, address)),
        ("use_sha_instructions", c_int32, (c_int32,)),
    ):
        function = getattr(library, f"agi2_{name}")
        function.restype, function.argtypes = result, arguments
    library.agi2_use_sha_instructions(True)
    return library


# AGI2_NATIVE is the folder of another build: `tests/sanitize.py` makes one with sanitizers.
LIBRARY = load(Path(os.environ.get("AGI2_NATIVE") or Path(__file__).parent))


Scanned = tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
"""Number of bytes of each piece, (P,); the first 16 bytes of the SHA-256 hash of its document up to
its end, (P, 16); and of shingles, (K,) each: hash, document, offset in it of the first character,
and after the last one."""


class DocumentScanner:
    """Scans documents that come in pieces.

    Args:
        kept: mask, (N + 1,), of the code points that count; the last is for all from N on.
    """

    def __init__(self, kept: np.ndarray) -> None:
        assert LIBRARY is not None
        self._kept = np.ascontiguousarray(kept, np.uint8)
        self._state = np.zeros(LIBRARY.agi2_scan_bytes(), np.uint8)
        types = (np.uint64, np.int64, np.int64, np.int64)
        self._outputs = [np.empty(0, dtype) for dtype in types]

    def scan(
        self,
        text: bytes,
        characters: np.ndarray,
        documents: np.ndarray,
        threshold: int,
        minima: np.ndarray | None,
    ) -> Scanned:
        """Scan pieces.

        Args:
            text: the pieces one after the other, in UTF-8.
            characters: number of characters of each, (P,) int64.
            documents: document of each, (P,) int64, ascending from 1 in steps of 1; from 0 if the
                first piece continues the last one of the call before.
            threshold: the greatest hash of a shingle that is returned.
            minima: the smallest hash in each range of each document's shingles so far, (D, BINS)
                uint64, which is updated.
        """
        assert LIBRARY is not None
        count = len(documents)
        if count and not (0 <= documents[0] <= 1 and (np.diff(documents) >= 0).all()):
            raise ValueError("the documents are not in ascending order")
        if minima is not None and count and documents[-1] >= len(minima):
            raise ValueError("there are more documents than rows")
        if (characters < 0).any():
            raise ValueError("a number of characters is negative")
        total = int(characters.sum())
        if len(self._outputs[0]) < total:
            self._outputs = [np.empty(total, each.dtype) for each in self._outputs]
        sizes, digests = np.empty(count, np.int64), np.empty((count, 16), np.uint8)
        found = LIBRARY.agi2_scan(
            self._state.ctypes.data,
            text,
            len(text),
            array_address(characters, np.int64, count),
            array_address(documents, np.int64, count),
            count,
            self._kept.ctypes.data,
            len(self._kept) - 1,
            threshold,
            sizes.ctypes.data,
            digests.ctypes.data,
            None if minima is None else array_address(minima, np.uint64, minima.size),
            *(each.ctypes.data for each in self._outputs),
        )
        hashes, of, starts, ends = (each[:found].copy() for each in self._outputs)
        return sizes, digests, (hashes, of, starts, ends)


def sketches(minima: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the sketches, (D,), for the smallest hashes of each range, (D, BINS) uint64."""
    assert LIBRARY is not None
    found = np.empty(len(minima), dtype)
    LIBRARY.agi2_sketches(
        array_address(minima, np.uint64, minima.size), len(minima), found.ctypes.data
    )
    return found
