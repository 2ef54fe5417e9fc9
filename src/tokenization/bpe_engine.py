"""Encode text by byte-level BPE: in C (`nn.bpe_library`), or else by the `tokenizers` library.

The C code has the same ids, at ten times the speed of `tokenizers` and twice that of `tiktoken`,
and adds no dependency. The library keeps what it cannot do: other pre-tokenizers, and NFC.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import Any, Protocol

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from ..nn import bpe_library
from ..nn.bpe_library import CODE_POINTS, LETTER, NUMBER, OTHER, WHITE
from ..utils import usable_cores
from .byte_level import BYTE_OF, splitter_of
from .pieces import MAX_RUN, split_text, well_formed
from .threads import map_in_order

Encoded = tuple[np.ndarray, np.ndarray]
"""The ids of texts, (N,), and the number of pieces or ids of each."""

# UTF-8 bytes that a thread encodes at a time.
_BATCH_BYTES = 1 << 18
# The `tokenizers` library encodes the pieces of a batch in parallel.
_LIBRARY_BATCH = 16


class Engine(Protocol):
    """Encodes texts with one vocabulary. Thread-safe."""

    def encode(
        self, texts: Iterable[str], dtype: type[np.unsignedinteger], threads: int
    ) -> Encoded:
        """Encode well-formed texts; return all ids, (N,), and offsets, (texts + 1,) int64."""

    def encode_to_list(self, text: str) -> list[int]:
        """Encode any text to a list: the fastest way for a short one."""

    def encode_utf8(
        self, data: bytes, ends: Sequence[int], dtype: type[np.unsignedinteger]
    ) -> Encoded:
        """Encode texts as `Tokenizer.encode_utf8` does."""


def make_engine(tokenizer: tokenizers.Tokenizer) -> Engine:
    """Return the fastest engine that gives the ids of a valid byte-level tokenizer."""
    if bpe_library.LIBRARY is None or tokenizer.normalizer is not None:
        return LibraryEngine(tokenizer)
    content = json.loads(tokenizer.to_str())
    splitter = splitter_of(content["pre_tokenizer"])
    if splitter is None or content["model"].get("ignore_merges"):
        return LibraryEngine(tokenizer)
    vocab = content["model"]["vocab"]
    ranks: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(content["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks[left, right] = rank  # of equal merges, the last one counts
    rows = [(vocab[a], vocab[b], vocab[a + b], rank) for (a, b), rank in ranks.items()]
    ids = {byte: vocab[character] for character, byte in BYTE_OF.items()}
    return FastEngine(
        bpe_library.Encoder(
            np.array([ids[byte] for byte in range(256)], np.uint32),
            np.array(rows, np.uint32).reshape(-1, 4),
            KINDS,
            splitter,
        )
    )


class LibraryEngine:
    """Encodes by the `tokenizers` library, which has threads of its own."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(
        self, texts: Iterable[str], dtype: type[np.unsignedinteger], threads: int
    ) -> Encoded:
        """Encode texts; `threads` is ignored."""
        parts, offsets = [np.array([], dtype)], [0]
        for text in texts:
            size = 0
            pieces = split_text(text)
            while batch := list(islice(pieces, _LIBRARY_BATCH)):
                for each in self._tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                    parts.append(np.array(each.ids, dtype))
                    size += len(parts[-1])
            offsets.append(offsets[-1] + size)
        return np.concatenate(parts), np.array(offsets, np.int64)

    def encode_to_list(self, text: str) -> list[int]:
        """Encode any text."""
        return self.encode([well_formed(text)], np.uint32, 1)[0].tolist()

    def encode_utf8(
        self, data: bytes, ends: Sequence[int], dtype: type[np.unsignedinteger]
    ) -> Encoded:
        """Encode texts as `Tokenizer.encode_utf8` does."""
        return self.encode((data[a:b].decode() for a, b in pairwise([0, *ends])), dtype, 1)


class FastEngine:
    """Encodes by the library in C, in several threads."""

    def __init__(self, encoder: bpe_library.Encoder) -> None:
        self._encoder = encoder
        join_pieces([b" "])  # the kinds of ASCII characters are known from now on

    def encode_to_list(self, text: str) -> list[int]:
        """Encode any text: a short one without what only texts of several pieces need."""
        if len(text) > MAX_RUN:
            return self.encode([well_formed(text)], np.uint32, usable_cores())[0].tolist()
        data = text.encode("utf-8", "replace")
        ids = self._encoder.encode_piece(data)
        if ids is None:
            learn_kinds(data)
            ids = self._encoder.encode_piece(data)
        assert ids is not None
        return ids

    def encode(
        self, texts: Iterable[str], dtype: type[np.unsignedinteger], threads: int
    ) -> Encoded:
        """Encode texts."""

        def encode(pieces: list[bytes]) -> Encoded:
            return self._encoder.encode(*join_pieces(pieces), dtype)

        ends = [0]  # the number of pieces up to the end of each text
        batches = batches_of_pieces(map(split_text, texts), ends)
        encoded = list(map_in_order(encode, batches, threads))
        ids = np.concatenate([np.array([], dtype), *(ids for ids, _ in encoded)])
        counts = np.concatenate([np.zeros(1, np.int64), *(counts for _, counts in encoded)])
        return ids, np.cumsum(counts)[ends]

    def encode_utf8(
        self, data: bytes, ends: Sequence[int], dtype: type[np.unsignedinteger]
    ) -> Encoded:
        """Encode texts as `Tokenizer.encode_utf8` does."""
        piece_ends: list[int] = []
        pieces = [0]  # the number of pieces up to the end of each text
        for start, end in pairwise([0, *ends]):
            if end - start <= MAX_RUN:  # in bytes, and so in characters, too
                piece_ends.append(end)
            else:
                sizes = (len(piece.encode()) for piece in split_text(data[start:end].decode()))
                piece_ends += islice(accumulate(sizes, initial=start), 1, None)
            pieces.append(len(piece_ends))
        learn_kinds(data)
        ids, counts = self._encoder.encode(data, np.array(piece_ends, np.int64), dtype)
        return ids, np.cumsum(np.concatenate([np.zeros(1, np.int64), counts]))[pieces]


def batches_of_pieces(
    texts: Iterable[Iterable[str]], ends: list[int] | None = None
) -> Iterator[list[bytes]]:
    """Yield the pieces of texts in batches; append the number of pieces so far to `ends`."""
    batch: list[bytes] = []
    size, count = 0, 0
    for pieces in texts:
        for piece in pieces:
            batch.append(piece.encode())
            size += len(batch[-1])
            count += 1
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if ends is not None:
            ends.append(count)
    if batch:
        yield batch


def join_pieces(pieces: list[bytes]) -> tuple[bytes, np.ndarray]:
    """Join pieces of UTF-8 text, and learn the kinds of its characters.

    Returns:
        The text, and the end of each piece in it, (P,) int64.
    """
    text = b"".join(pieces)
    learn_kinds(text)
    return text, np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))


KINDS = np.zeros(CODE_POINTS, np.uint8)
"""The kinds of all characters: 0 until `learn_kinds` has asked the `tokenizers` library."""
_PATTERNS: tuple[tuple[int, Any], ...] = tuple(
    (kind, pre_tokenizers.Split(tokenizers.Regex(pattern), "removed"))
    for kind, pattern in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (WHITE, r"\s"))
)
# Blocks of 256 characters whose kinds are learned together, if a text has characters of up to so
# many that are not known: texts to come have others of the same scripts.
_LEARNED_BLOCKS = 16


def learn_kinds(text: bytes) -> None:
    """Enter the kinds of a UTF-8 text's characters, by the version of Unicode of `tokenizers`."""
    if bpe_library.unknown_kind(KINDS, text) < 0:
        return
    codes = np.frombuffer(text.decode().encode("utf-32-le"), np.uint32)
    # Not `np.unique`, whose first call takes 40 ms: it imports the masked arrays.
    is_new = np.zeros(CODE_POINTS, bool)
    is_new[codes] = True
    is_new[KINDS != 0] = False
    blocks = is_new.reshape(-1, 256)
    has_new = blocks.any(axis=1)
    if np.count_nonzero(has_new) <= _LEARNED_BLOCKS:  # UTF-8 text does not contain surrogates
        blocks[has_new] = True
    is_new[:128] = True  # ASCII is known as a whole
    codes = np.flatnonzero(is_new).astype(np.uint32)
    characters = codes.tobytes().decode("utf-32-le")
    kinds = np.full(len(codes), OTHER, np.uint8)
    for kind, pattern in _PATTERNS:
        matches = np.ones(len(codes), bool)
        for _, (start, end) in pattern.pre_tokenize_str(characters):  # what is not removed
            matches[start:end] = False
        kinds[matches] = kind
    KINDS[codes] = kinds
