"""Byte-level BPE in C: encode texts and train merges.

See `bpe.h`, `bpe_encode.c`, `bpe_count.c` and `bpe_merge.c`.

It is available if a C compiler was found when the package was installed; otherwise `LIBRARY` is
`None`. The GIL is released in every call that takes long.

N tokens, P pieces of text, M merges.
"""

from __future__ import annotations

import ctypes
import os
import sysconfig
import weakref
from collections.abc import Iterator
from ctypes import c_char_p, c_int32, c_int64, c_uint32, c_void_p
from pathlib import Path
from typing import NamedTuple

import numpy as np

CODE_POINTS = 0x110000
UNKNOWN_KIND, LETTER, NUMBER, WHITE, OTHER = range(5)
"""Kinds of characters, in the order of the enum in `bpe.h`."""


class Splitter(NamedTuple):
    """A pre-tokenizer: how text is split into words."""

    is_gpt4: bool
    """Whether it is GPT-4's, else GPT-2's."""
    max_digits: int
    """Maximum digits of a word; 0 for no limit. GPT-2's with a limit isolates each digit."""


def load(folder: Path) -> ctypes.CDLL | None:
    """Load the library from a folder; return `None` if it is missing."""
    try:
        library = ctypes.CDLL(str(folder / f"_bpe{sysconfig.get_config_var('EXT_SUFFIX')}"))
    except OSError:
        return None
    address, size, small = c_void_p, c_int64, c_int32
    for name, result, arguments in (
        ("encoder", address, (address, address, size, address, small, small)),
        ("free", None, (address,)),
        ("encode", size, (address, address, c_char_p, address, size, address, small, address)),
        ("encode_piece", size, (address, c_char_p, size)),
        ("cache_bytes", size, ()),
        ("unknown_kind", size, (address, c_char_p, size)),
        ("trainer", address, (address, small, small, size, size)),
        ("free_trainer", None, (address,)),
        ("count", size, (address, c_char_p, address, size, size)),
        ("end_count", size, (address,)),
        ("begin", size, (address, c_char_p, size, size)),
        ("merge", size, (address, size, size)),
        ("merges", size, (address, address)),
    ):
        function = getattr(library, f"agi2_bpe_{name}")
        function.restype, function.argtypes = result, arguments
    return library


# AGI2_NATIVE is the folder of another build: `tests/sanitize.py` makes one with sanitizers.
LIBRARY = load(Path(os.environ.get("AGI2_NATIVE") or Path(__file__).parent))


def unknown_kind(kinds: np.ndarray, text: bytes) -> int:
    """Return the first code point of a text whose entry in `kinds` is 0, or -1."""
    assert LIBRARY is not None
    return int(
        LIBRARY.agi2_bpe_unknown_kind(array_address(kinds, np.uint8, CODE_POINTS), text, len(text))
    )


class Encoder:
    """A vocabulary with its pre-tokenizer. Thread-safe.

    Args:
        byte_ids: the token id of each byte, (256,) uint32.
        merges: left, right and new token id, and rank, of distinct pairs, (M, 4) uint32.
        kinds: kinds of all code points, (CODE_POINTS,) uint8, which may be filled in later.
        splitter: the pre-tokenizer.
    """

    def __init__(
        self, byte_ids: np.ndarray, merges: np.ndarray, kinds: np.ndarray, splitter: Splitter
    ) -> None:
        assert LIBRARY is not None
        self._kinds = kinds  # kept alive: the library reads it
        # Those that no thread uses now. List methods are atomic.
        self._workspaces: list[_Workspace] = []
        self._encoder = LIBRARY.agi2_bpe_encoder(
            array_address(byte_ids, np.uint32, 256),
            array_address(merges, np.uint32, 4 * len(merges)),
            len(merges),
            array_address(kinds, np.uint8, CODE_POINTS),
            splitter.is_gpt4,
            splitter.max_digits,
        )
        if not self._encoder:
            raise MemoryError
        weakref.finalize(self, LIBRARY.agi2_bpe_free, self._encoder)
        self._encode_piece = LIBRARY.agi2_bpe_encode_piece

    def encode(
        self, text: bytes, ends: np.ndarray, dtype: type[np.unsignedinteger]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode pieces of text separately.

        Args:
            text: the pieces one after the other, in UTF-8; the kinds of all characters are known.
            ends: the end of each piece in `text`, (P,) int64, ascending, the last `len(text)`.
            dtype: uint16 or uint32; every id fits.

        Returns:
            The ids of all pieces, (N,), and the number of ids of each, (P,) int64.
        """
        assert LIBRARY is not None
        if len(ends) and (ends[0] < 0 or ends[-1] != len(text) or (np.diff(ends) < 0).any()):
            raise ValueError("the pieces do not make up the text")
        workspace = self._take_workspace()
        ids, counts = np.empty(len(text), dtype), np.empty(len(ends), np.int64)
        found = LIBRARY.agi2_bpe_encode(
            self._encoder,
            workspace.cache.ctypes.data,
            text,
            array_address(ends, np.int64, len(ends)),
            len(ends),
            ids.ctypes.data,
            dtype == np.uint32,
            counts.ctypes.data,
        )
        self._workspaces.append(workspace)
        return ids[: _check(found)].copy(), counts

    def encode_piece(self, text: bytes) -> list[int] | None:
        """Encode one piece of at most `PIECE_BYTES`: what takes a microsecond, without arrays.

        Returns:
            The ids; `None` if the kind of one of its characters is not known.
        """
        size = len(text)
        if size > PIECE_BYTES:
            raise ValueError(f"the piece has over {PIECE_BYTES:,} bytes")
        workspace = self._take_workspace()
        found = self._encode_piece(workspace.address, text, size)
        ids = None if found == _UNKNOWN_CHARACTER else workspace.ids[: _check(found)]
        self._workspaces.append(workspace)
        return ids

    def _take_workspace(self) -> _Workspace:
        try:
            return self._workspaces.pop()
        except IndexError:
            return _Workspace(self._encoder)


PIECE_BYTES = 8192
"""Maximum bytes of the piece that `Encoder.encode_piece` encodes."""


class _Workspace:
    """What an encoder needs for one thread.

    Args:
        encoder: the address of the encoder.
    """

    def __init__(self, encoder: int) -> None:
        assert LIBRARY is not None
        self.cache = np.zeros(LIBRARY.agi2_bpe_cache_bytes(), np.uint8)
        """Words that were encoded lately."""
        self.ids = (c_uint32 * PIECE_BYTES)()
        parts = (encoder, self.cache.ctypes.data, ctypes.addressof(self.ids))
        self._struct = (c_void_p * len(parts))(*parts)
        self.address = ctypes.addressof(self._struct)
        """Of these three, for `agi2_bpe_encode_piece`."""


class Trainer:
    """Counts the words of a text, then merges the most frequent pairs of adjacent tokens.

    Args:
        kinds: as for `Encoder`.
        splitter: the pre-tokenizer.
        max_words: maximum distinct words; if there are more, the rarest are dropped.
        max_bytes: maximum bytes of the distinct words, likewise.
    """

    def __init__(
        self, kinds: np.ndarray, splitter: Splitter, max_words: int, max_bytes: int
    ) -> None:
        assert LIBRARY is not None
        self._kinds = kinds
        self.min_count = 0
        """Words that occur up to this often were dropped; 0 if none were. Set by `end_count`."""
        self._trainer = LIBRARY.agi2_bpe_trainer(
            array_address(kinds, np.uint8, CODE_POINTS), *splitter, max_words, max_bytes
        )
        if not self._trainer:
            raise MemoryError
        weakref.finalize(self, LIBRARY.agi2_bpe_free_trainer, self._trainer)

    def count(self, text: bytes, ends: np.ndarray, weight: int = 1) -> None:
        """Count the words of pieces of text.

        Args:
            text: the pieces one after the other.
            ends: the end of each, (P,), as for `Encoder.encode`.
            weight: as how many each word counts.
        """
        assert LIBRARY is not None
        if len(ends) and (ends[0] < 0 or ends[-1] != len(text) or (np.diff(ends) < 0).any()):
            raise ValueError("the pieces do not make up the text")
        address = array_address(ends, np.int64, len(ends))
        _check(LIBRARY.agi2_bpe_count(self._trainer, text, address, len(ends), weight))

    def end_count(self) -> None:
        """End the limits on distinct words, for a text of limited size that is still to count."""
        assert LIBRARY is not None
        self.min_count = _check(LIBRARY.agi2_bpe_end_count(self._trainer))

    def merge(self, byte_order: bytes, n_special: int, vocab_size: int) -> Iterator[int]:
        """Train up to a vocabulary size; may be called once, after all is counted.

        Args:
            byte_order: the 256 bytes in the order of their ids, which follow `n_special` others.
            n_special: number of ids before them.
            vocab_size: maximum vocabulary size, `n_special + 256` or more.

        Yields:
            The number of merges so far, now and then.
        """
        assert LIBRARY is not None
        assert sorted(byte_order) == list(range(256))
        assert vocab_size >= n_special + 256
        _check(LIBRARY.agi2_bpe_begin(self._trainer, byte_order, n_special, vocab_size))
        is_done = False
        while not is_done:  # in steps, so that Ctrl-C is noticed
            made = _check(LIBRARY.agi2_bpe_merge(self._trainer, vocab_size, _STEP))
            is_done = made < _STEP
            yield LIBRARY.agi2_bpe_merges(self._trainer, None)

    def merges(self) -> np.ndarray:
        """Return the merges: left, right and new token id, (M, 3) uint32."""
        assert LIBRARY is not None
        out = np.empty((LIBRARY.agi2_bpe_merges(self._trainer, None), 3), np.uint32)
        LIBRARY.agi2_bpe_merges(self._trainer, out.ctypes.data)
        return out


_STEP = 256
_UNKNOWN_CHARACTER = -2  # as in `bpe.h`


def _check(result: int) -> int:
    if result < 0:
        raise MemoryError("out of memory in the BPE library")
    return result


def array_address(array: np.ndarray, dtype: type[np.generic], count: int) -> int:
    """Return the address of an array's `count` elements.

    Raises:
        TypeError: if dtype, size or layout are not as expected: a bug in the caller.
    """
    if array.dtype != dtype or array.size != count or not array.flags.c_contiguous:
        raise TypeError(f"the library needs {count} contiguous elements of {dtype.__name__}")
    return int(array.__array_interface__["data"][0])
