"""`Scan`: what one pass over a corpus learns of it, in arrays. D documents."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..utils import atomic_path
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

    @property
    def totals(self) -> list[int]:
        """Numbers of documents, characters and bytes."""
        return [len(self), int(self.characters.sum()), int(self.sizes.sum())]

    @cached_property
    def originals(self) -> np.ndarray:
        """Index of the first document with the same text as each, (D,)."""
        order = np.lexsort(self.hashes.T)  # stable: equal documents stay in order
        hashes = self.hashes[order]
        is_new = np.ones(len(self), bool)
        is_new[1:] = (hashes[1:] != hashes[:-1]).any(1)
        del hashes  # for millions of documents each array takes much memory
        begins = np.flatnonzero(is_new)
        originals = np.empty(len(self), _index_type(len(self)))
        originals[order] = np.repeat(order[begins], np.diff(begins, append=len(self)))
        return originals

    @cached_property
    def texts(self) -> Texts:
        """The distinct documents."""
        is_first = self.originals == np.arange(len(self))
        ranks = np.cumsum(is_first, dtype=_index_type(len(self))) - 1
        shingles = self.shingles.select(is_first[self.shingles.documents])
        shingles = replace(shingles, documents=ranks[shingles.documents].astype(np.int64))
        return Texts(self.characters[is_first], ranks[self.originals], shingles)

    def select(self, kept: np.ndarray) -> Scan:
        """Return the scan of the documents of a mask, (D,)."""
        ranks = np.cumsum(kept) - 1
        shingles = self.shingles.select(kept[self.shingles.documents])
        shingles = replace(shingles, documents=ranks[shingles.documents])
        return Scan(self.characters[kept], self.sizes[kept], self.hashes[kept], shingles)

    @property
    def identity(self) -> str:
        """SHA-256 hash of all documents, in hexadecimal."""
        digest = hashlib.sha256(self.hashes.data)
        digest.update(self.sizes.data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Texts:
    """The distinct documents of a corpus: T texts."""

    lengths: np.ndarray
    """Number of characters of each, (T,)."""
    index_of: np.ndarray
    """Index of the text of each document, (D,)."""
    shingles: Shingles
    """The shingles of the texts; `documents` are indices of texts."""

    def __len__(self) -> int:
        return len(self.lengths)

    def shingles_of(self, text: int) -> Shingles:
        """Return the shingles of a text."""
        first, last = np.searchsorted(self.shingles.documents, [text, text + 1])
        return self.shingles.select(slice(first, last))


def _index_type(count: int) -> type[np.signedinteger]:
    """Return the smaller type of indices of so many documents."""
    return np.int32 if count < 2**31 else np.int64


class Scanner:
    """Scans a stream of documents, each in one piece or several.

    Args:
        sink: called with the UTF-8 bytes of each piece, such as to write them to a file.
    """

    def __init__(self, sink: Callable[[bytes], object] | None = None) -> None:
        self._sink = sink
        self._sampler = ShingleSampler()
        self._lengths, self._sizes, self._hashes = array("q"), array("q"), bytearray()
        self._begin_document()
        self._is_open = False

    def _begin_document(self) -> None:
        self._hash, self._characters, self._size = hashlib.sha256(), 0, 0

    def add(self, text: str, continues: bool = False) -> None:
        """Scan a document; or, if it `continues` the one before, the next piece of that.

        Lone surrogates become `?`.
        """
        if not continues:
            self._end_document()
        self._is_open = True
        for at in range(0, len(text), _PART) or [0]:
            self._add_part(text[at : at + _PART], continues or at > 0)

    def _add_part(self, text: str, continues: bool) -> None:
        data = text.encode("utf-8", "replace")
        if self._sink is not None:
            self._sink(data)
        self._hash.update(data)
        self._characters += len(text)
        self._size += len(data)
        self._sampler.add(text, continues)

    def _end_document(self) -> None:
        if self._is_open:
            self._lengths.append(self._characters)
            self._sizes.append(self._size)
            self._hashes += self._hash.digest()[:16]
            self._begin_document()

    def finish(self) -> Scan:
        """Return the scan, after the last document."""
        self._end_document()
        shingles = self._sampler.finish()
        # Without copies: this is most of the memory that a corpus of small documents takes.
        lengths, sizes = (np.frombuffer(each, np.int64) for each in (self._lengths, self._sizes))
        return Scan(lengths, sizes, np.frombuffer(self._hashes, "<u8").reshape(-1, 2), shingles)


# Characters that are scanned at a time: copies of all of a long piece would take much memory.
_PART = 2**20


def scan_texts(texts: Iterable[str]) -> Scan:
    """Scan documents that are in memory."""
    scanner = Scanner()
    for text in texts:
        scanner.add(text)
    return scanner.finish()


def save_scan(scan: Scan, path: Path) -> None:
    """Save a scan to a file, atomically."""
    shingles = {each.name: getattr(scan.shingles, each.name) for each in fields(Shingles)}
    arrays = {name: getattr(scan, name) for name in ("characters", "sizes", "hashes")}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, **{f"shingle_{name}": value for name, value in shingles.items()})


def load_scan(path: Path) -> Scan:
    """Load a scan that `save_scan` saved."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    own = {name: value for name, value in arrays.items() if not name.startswith("shingle_")}
    names = (field.name for field in fields(Shingles))
    shingles = {name: arrays[f"shingle_{name}"] for name in names}
    return Scan(**own, shingles=Shingles(**{**shingles, "rate": int(shingles["rate"])}))
