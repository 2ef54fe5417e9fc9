"""`Scan`: what one pass over a corpus learns of it, in arrays. D documents.

The shingles of a conversation, its sketch and `Scan.plain_hashes` are those of its turns: neither
the JSON of its canonical text nor the system message, which many have in common, says that two
conversations are alike.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..tokenization.threads import BackgroundCalls
from ..utils import atomic_path
from .conversations import turns_of
from .dedup import Shingles, ShingleSampler, at_rate, limit
from .document_arrays import compact, index_type, parts_by_value, ranks_of
from .sketches import Sketcher


@dataclass(frozen=True)
class Scan:
    """Sizes and hashes of a corpus' documents, and a sample of its shingles.

    Memory is 24 bytes a document, 40 with `plain_hashes`, and 20 for each of a million shingles.
    """

    characters: np.ndarray
    """Number of characters of each document, (D,)."""
    sizes: np.ndarray
    """Number of UTF-8 bytes of each, (D,)."""
    hashes: np.ndarray
    """128 bits of the SHA-256 hash of each, (D, 2)."""
    shingles: Shingles
    plain_hashes: np.ndarray | None = None
    """The same of each without white space and with its characters decomposed (Unicode's NFD),
    (D, 2): of documents with other line ends or in another form, they are equal; and of
    conversations with the same turns."""

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

    @property
    def is_first(self) -> np.ndarray:
        """The mask, (D,), of the documents that are not copies of one before them."""
        return self.originals == np.arange(len(self), dtype=index_type(len(self)))

    @cached_property
    def plain_originals(self) -> np.ndarray:
        """The same, but for white space and the form of Unicode."""
        return self.originals if self.plain_hashes is None else _firsts(self.plain_hashes)

    @cached_property
    def texts(self) -> Texts:
        """The distinct documents."""
        is_first = self.is_first
        if is_first.all():
            return Texts(self.characters, self.originals, self.shingles)
        ranks = ranks_of(is_first)
        shingles = self.shingles.select(is_first[self.shingles.documents])
        shingles = replace(shingles, documents=ranks[shingles.documents])
        return Texts(self.characters[is_first], ranks[self.originals], shingles)

    def select(self, kept: np.ndarray) -> Scan:
        """Return the scan of the documents of a mask, (D,)."""
        ranks = ranks_of(kept)
        shingles = self.shingles.select(kept[self.shingles.documents])
        shingles = replace(shingles, documents=ranks[shingles.documents])
        plain = None if self.plain_hashes is None else self.plain_hashes[kept]
        return Scan(self.characters[kept], self.sizes[kept], self.hashes[kept], shingles, plain)

    @property
    def identity(self) -> str:
        """SHA-256 hash of all documents, in hexadecimal."""
        digest = hashlib.sha256(self.hashes.data)
        for at in range(0, len(self), _BATCH):
            digest.update(self.sizes[at : at + _BATCH].astype("<i8").data)
        return digest.hexdigest()


def _firsts(hashes: np.ndarray) -> np.ndarray:
    """Return the index of the first row that equals each, (D,), of hashes, (D, 2)."""
    originals = np.empty(len(hashes), index_type(len(hashes)))
    for rows in parts_by_value(hashes.view("<u4")[:, 1]):
        rows = rows[np.lexsort(hashes[rows].T)]  # stable: equal documents stay in order
        own = hashes[rows]
        is_new = np.ones(len(rows), bool)
        is_new[1:] = (own[1:] != own[:-1]).any(1)
        begins = np.flatnonzero(is_new)
        originals[rows] = np.repeat(rows[begins], np.diff(begins, append=len(rows)))
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


class Scanner:
    """Scans a stream of documents, each in one piece or several; if it is long, in another thread.

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
        self._plain_hashes = bytearray() if hashes_plain else None
        self._plain_hash = hashlib.sha256()
        self._lengths, self._sizes, self._hashes = array("q"), array("q"), bytearray()
        self._worker: BackgroundCalls[_Pieces] | None = None
        self._begin_batch(False)

    def _begin_batch(self, are_conversations: bool) -> None:
        self._texts: list[str] = []
        self._continues: list[bool] = []
        self._are_conversations = are_conversations
        self._characters = 0

    def add(self, text: str, continues: bool = False, is_conversation: bool = False) -> None:
        """Scan a document; or, if it `continues` the one before, the next piece of that.

        Lone surrogates become `?`.

        Args:
            text: the text; of a conversation, the canonical text.
            continues: whether it continues the document before.
            is_conversation: whether the document is a conversation.
        """
        if is_conversation and continues:  # only complete, its JSON can be parsed
            self._texts[-1] += text
            self._characters += len(text)
            return
        if self._characters >= _BATCH or is_conversation != self._are_conversations:
            self._submit(is_conversation)
        self._texts.append(text)
        self._continues.append(continues)
        self._characters += len(text)
        if self._characters >= _BATCH and not is_conversation:
            self._submit(False)

    def _submit(self, is_conversation: bool) -> None:
        """Scan what was added, in the background; begin to collect documents of a kind."""
        if self._texts:
            if self._worker is None:
                self._worker = BackgroundCalls(self._scan)
            self._worker.submit((self._texts, self._continues, self._are_conversations))
        self._begin_batch(is_conversation)

    def _scan(self, pieces: _Pieces) -> None:
        texts, continues, are_conversations = pieces
        if are_conversations:
            self._scan_conversations(texts)
        else:
            self._scan_texts(texts, continues)

    def _scan_conversations(self, texts: list[str]) -> None:
        turns = list(map(turns_of, texts))
        characters = np.fromiter(map(len, turns), np.int64, len(turns))
        is_new = np.ones(len(turns), bool)
        self._sampler.add("".join(turns).encode("utf-8", "replace"), characters, is_new)
        for text in texts:
            data = text.encode("utf-8", "replace")
            if self._sink is not None:
                self._sink(data)
            self._lengths.append(len(text))
            self._sizes.append(len(data))
            self._hashes += hashlib.sha256(data).digest()[:16]
        if self._plain_hashes is not None:
            self._plain_hashes += self._hash_plain(turns, is_new).tobytes()

    def _scan_texts(self, all_texts: list[str], all_continue: list[bool]) -> None:
        for texts, continues in _parts(all_texts, all_continue):
            data = "".join(texts).encode("utf-8", "replace")
            if self._sink is not None:
                self._sink(data)
            characters = np.fromiter(map(len, texts), np.int64, len(texts))
            is_new = ~np.fromiter(continues, bool, len(texts))
            is_new[0] |= not self._lengths
            sizes, digests = self._sampler.add(data, characters, is_new)
            documents = np.cumsum(is_new)
            _add_sums(self._lengths, characters, documents)
            _add_sums(self._sizes, sizes, documents)
            _add_last(self._hashes, digests, is_new)
            if self._plain_hashes is not None:
                _add_last(self._plain_hashes, self._hash_plain(texts, is_new), is_new)

    def _hash_plain(self, texts: list[str], is_new: np.ndarray) -> np.ndarray:
        """Hash documents as `plain_hashes` says, up to the end of each piece, (P, 16)."""
        digests = bytearray()
        for text, begins_document in zip(texts, is_new.tolist(), strict=True):
            if begins_document:
                self._plain_hash = hashlib.sha256()
            self._plain_hash.update(_plain(text))
            digests += self._plain_hash.digest()[:16]
        return np.frombuffer(digests, np.uint8).reshape(-1, 16)

    def finish(self) -> Scan:
        """Return the scan, after the last document."""
        scan = self.finish_part()
        return replace(scan, shingles=limit(scan.shingles, int(scan.characters.sum())))

    def finish_part(self) -> Scan:
        """Return the scan of a part of a corpus, after its last document, for `join_scans`."""
        if self._worker is not None:
            self._worker.finish()
            self._worker = None
        if self._texts:
            self._scan((self._texts, self._continues, self._are_conversations))
            self._begin_batch(False)
        shingles = self._sampler.finish()
        lengths = compact(np.frombuffer(self._lengths, np.int64))
        sizes = compact(np.frombuffer(self._sizes, np.int64))
        # Without copies: this is most of the memory that a corpus of small documents takes.
        hashes, plain = (
            np.frombuffer(each, "<u8").reshape(-1, 2)
            for each in (self._hashes, self._plain_hashes or b"")
        )
        return Scan(lengths, sizes, hashes, shingles, None if self._plain_hashes is None else plain)


# Characters of documents that are scanned at a time. Many, since the thread that scans waits for
# the one that reads after each batch: only one runs Python code at a time.
_BATCH = 2**20
_Pieces = tuple[list[str], list[bool], bool]
"""Pieces of documents, whether each continues the one before, and whether they are conversations.
"""


def _parts(texts: list[str], continues: list[bool]) -> Iterator[tuple[list[str], list[bool]]]:
    """Yield pieces as they are, but long ones in parts, since copies would take much memory."""
    first = 0
    for index, text in enumerate(texts):
        if len(text) > _BATCH:
            if first < index:
                yield texts[first:index], continues[first:index]
            for at in range(0, len(text), _BATCH):
                yield [text[at : at + _BATCH]], [continues[index] or at > 0]
            first = index + 1
    if first < len(texts):
        yield texts[first:], continues[first:]


def _add_sums(totals: array[int], values: np.ndarray, documents: np.ndarray) -> None:
    """Append the sum of the values, (P,), of each document; add those of document 0 to the last."""
    sums = np.bincount(documents, values).astype(np.int64)
    if sums[0]:
        totals[-1] += int(sums[0])
    totals.frombytes(sums[1:].tobytes())


def _add_last(digests: bytearray, new: np.ndarray, is_new: np.ndarray) -> None:
    """Append the digest, of (P, 16), of the last piece of each document.

    It replaces the last one before if the first piece continues that document.
    """
    if not is_new[0]:
        del digests[-16:]
    digests += new[np.append(is_new[1:], True)].tobytes()


def _plain(text: str) -> bytes:
    """Return the UTF-8 of a text without white space, decomposed."""
    if text.isascii():
        return text.encode().translate(None, _SPACES)
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
        np.concatenate(
            [
                each.documents.astype(np.int64) + at
                for each, at in zip(samples, firsts, strict=False)
            ]
        ),
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
