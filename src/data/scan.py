"""`Scan`: what one pass over a corpus learns of it, in arrays. D documents."""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..utils import atomic_path
from .dedup import Shingles, ShingleSampler, at_rate, limit
from .sketches import Sketcher


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
    plain_hashes: np.ndarray | None = None
    """The same of each without white space and with its characters decomposed (Unicode's NFD),
    (D, 2): of documents with other line ends or in another form, they are equal."""

    def __len__(self) -> int:
        return len(self.characters)

    @property
    def totals(self) -> list[int]:
        """Numbers of documents, characters and bytes."""
        return [len(self), int(self.characters.sum()), int(self.sizes.sum())]

    @cached_property
    def originals(self) -> np.ndarray:
        """Index of the first document with the same text as each, (D,)."""
        return _firsts(self.hashes)

    @cached_property
    def plain_originals(self) -> np.ndarray:
        """The same, but for white space and the form of Unicode."""
        return self.originals if self.plain_hashes is None else _firsts(self.plain_hashes)

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
        plain = None if self.plain_hashes is None else self.plain_hashes[kept]
        return Scan(self.characters[kept], self.sizes[kept], self.hashes[kept], shingles, plain)

    @property
    def identity(self) -> str:
        """SHA-256 hash of all documents, in hexadecimal."""
        digest = hashlib.sha256(self.hashes.data)
        digest.update(self.sizes.data)
        return digest.hexdigest()


def _firsts(hashes: np.ndarray) -> np.ndarray:
    """Return the index of the first row that equals each, (D,)."""
    order = np.lexsort(hashes.T)  # stable: equal documents stay in order
    sorted_hashes = hashes[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (sorted_hashes[1:] != sorted_hashes[:-1]).any(1)
    del sorted_hashes  # for millions of documents each array takes much memory
    begins = np.flatnonzero(is_new)
    originals = np.empty(len(order), _index_type(len(order)))
    originals[order] = np.repeat(order[begins], np.diff(begins, append=len(order)))
    return originals


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
        sketch_sink: called with the bytes of the documents' sketches.
        hashes_plain: whether to compute `Scan.plain_hashes`.
    """

    def __init__(
        self,
        sink: Callable[[bytes], object] | None = None,
        sketch_sink: Callable[[bytes], object] | None = None,
        hashes_plain: bool = False,
    ) -> None:
        self._sink = sink
        self._sampler = ShingleSampler(None if sketch_sink is None else Sketcher(sketch_sink))
        self._hashes_plain, self._plain_hashes = hashes_plain, bytearray()
        self._lengths, self._sizes, self._hashes = array("q"), array("q"), bytearray()
        self._begin_document()
        self._is_open = False

    def _begin_document(self) -> None:
        self._hash, self._plain_hash = hashlib.sha256(), hashlib.sha256()
        self._characters, self._size = 0, 0

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
        if self._hashes_plain:
            self._plain_hash.update(_plain(text, data))
        self._characters += len(text)
        self._size += len(data)
        self._sampler.add(text, continues)

    def _end_document(self) -> None:
        if self._is_open:
            self._lengths.append(self._characters)
            self._sizes.append(self._size)
            self._hashes += self._hash.digest()[:16]
            if self._hashes_plain:
                self._plain_hashes += self._plain_hash.digest()[:16]
            self._begin_document()

    def finish(self) -> Scan:
        """Return the scan, after the last document."""
        scan = self.finish_part()
        return replace(scan, shingles=limit(scan.shingles, int(scan.characters.sum())))

    def finish_part(self) -> Scan:
        """Return the scan of a part of a corpus, after its last document, for `join_scans`."""
        self._end_document()
        shingles = self._sampler.finish()
        # Without copies: this is most of the memory that a corpus of small documents takes.
        lengths, sizes = (np.frombuffer(each, np.int64) for each in (self._lengths, self._sizes))
        hashes, plain = (
            np.frombuffer(each, "<u8").reshape(-1, 2) for each in (self._hashes, self._plain_hashes)
        )
        return Scan(lengths, sizes, hashes, shingles, plain if self._hashes_plain else None)


def _plain(text: str, data: bytes) -> bytes:
    """Return the UTF-8 of a text without white space, decomposed; `data` is that of the text."""
    if not text.isascii():
        data = unicodedata.normalize("NFD", text).encode("utf-8", "replace")
        for mark in _UNICODE_SPACES:
            data = data.replace(mark, b"")
    return data.translate(None, _SPACES)


_SPACES = b" \t\n\r\x0b\x0c"
_UNICODE_SPACES = tuple(each.encode() for each in "\x85\xa0\u2028\u2029\ufeff")


def join_scans(parts: Sequence[Scan]) -> Scan:
    """Return the scan of a corpus, from those of its parts in order (`Scanner.finish_part`)."""
    firsts = np.cumsum([0, *map(len, parts)]).tolist()
    samples = [part.shingles for part in parts]
    shingles = Shingles(
        np.concatenate([each.hashes for each in samples]),
        np.concatenate([each.documents + at for each, at in zip(samples, firsts, strict=False)]),
        np.concatenate([each.starts for each in samples]),
        np.concatenate([each.ends for each in samples]),
    )
    rate = max(each.rate for each in samples)
    characters = np.concatenate([part.characters for part in parts])
    sizes = np.concatenate([part.sizes for part in parts])
    hashes = np.concatenate([part.hashes for part in parts])
    plain = [part.plain_hashes for part in parts if part.plain_hashes is not None]
    return Scan(
        characters,
        sizes,
        hashes,
        limit(at_rate(shingles, rate), int(characters.sum())),
        np.concatenate(plain) if plain else None,
    )


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
    arrays = {each.name: getattr(scan.shingles, each.name) for each in fields(Shingles)}
    arrays = {f"shingle_{name}": value for name, value in arrays.items()}
    arrays |= {name: getattr(scan, name) for name in _ARRAYS if getattr(scan, name) is not None}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


_ARRAYS = ("characters", "sizes", "hashes", "plain_hashes")


def load_scan(path: Path) -> Scan:
    """Load a scan that `save_scan` saved."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    names = (field.name for field in fields(Shingles))
    shingles = {name: arrays.pop(f"shingle_{name}") for name in names}
    return Scan(**arrays, shingles=Shingles(**{**shingles, "rate": int(shingles["rate"])}))
