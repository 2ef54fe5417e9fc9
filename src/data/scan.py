"""`Scan`: what one pass over a corpus learns of it, in arrays. D documents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .dedup import Shingles, ShingleSampler


@dataclass(frozen=True)
class Scan:
    """Sizes and hashes of a corpus' documents, and a sample of its shingles."""

    characters: np.ndarray
    """Number of characters of each document, (D,)."""
    sizes: np.ndarray
    """Number of UTF-8 bytes of each, (D,)."""
    hashes: np.ndarray
    """128 bits of the SHA-256 hash of each, (D, 2)."""
    shingles: Shingles

    def __len__(self) -> int:
        return len(self.characters)

    @cached_property
    def originals(self) -> np.ndarray:
        """Index of the first document with the same text as each, (D,)."""
        high, low = self.hashes.T
        order = np.lexsort((low, high))  # stable: equal documents stay in order
        high, low = high[order], low[order]
        is_new = np.ones(len(self), bool)
        is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        originals = np.empty(len(self), np.int64)
        originals[order] = order[np.flatnonzero(is_new)[np.cumsum(is_new) - 1]]
        return originals

    @property
    def identity(self) -> str:
        """SHA-256 hash of all documents, in hexadecimal."""
        return hashlib.sha256(self.hashes.tobytes() + self.sizes.tobytes()).hexdigest()


class Scanner:
    """Scans a stream of documents, each in one piece or several.

    Args:
        sink: called with the UTF-8 bytes of each piece, such as to write them to a file.
    """

    def __init__(self, sink: Callable[[bytes], object] | None = None) -> None:
        self._sink = sink
        self._sampler = ShingleSampler()
        self._documents: list[np.ndarray] = []
        self._new: list[tuple[int, int, int, int]] = []
        self._begin_document()

    def _begin_document(self) -> None:
        self._hash, self._characters, self._size = hashlib.sha256(), 0, 0

    def add(self, text: str, is_end: bool = True) -> None:
        """Scan a document, or the next piece of one; lone surrogates become `?`."""
        data = text.encode("utf-8", "replace")
        if self._sink is not None:
            self._sink(data)
        self._hash.update(data)
        self._characters += len(text)
        self._size += len(data)
        self._sampler.add(text, is_end)
        if is_end:
            digest = self._hash.digest()
            high, low = int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])
            self._new.append((self._characters, self._size, high, low))
            if len(self._new) == _PACKED:
                self._pack()
            self._begin_document()

    def _pack(self) -> None:
        """Move the documents' figures from Python objects, which take much memory, to an array."""
        self._documents.append(np.array(self._new, np.uint64).reshape(-1, 4))
        self._new = []

    def finish(self) -> Scan:
        """Return the scan, after the last document."""
        self._pack()
        figures = np.concatenate(self._documents)
        characters, sizes = figures[:, :2].astype(np.int64).T
        return Scan(characters, sizes, figures[:, 2:], self._sampler.finish())


_PACKED = 4096  # documents whose figures are packed together


def scan_texts(texts: Iterable[str]) -> Scan:
    """Scan documents that are in memory."""
    scanner = Scanner()
    for text in texts:
        scanner.add(text)
    return scanner.finish()
