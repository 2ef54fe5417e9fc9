"""Tokens on disk: files of at most `SHARD_TOKENS` tokens each, and the offsets of the documents.

`train-00000.bin`, `train-00001.bin`, ... contain the token ids, uint16 or uint32, little-endian;
`train.idx` contains the index of each document's first token, int64; `val-...` likewise.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from ..errors import AGI2Error
from ..tokenizer import Tokenizer
from ..utils import sha256_of

SHARD_TOKENS = 2**26
"""Tokens of each shard but the last."""


@dataclass
class SplitFigures:
    """What is in the shards of the training or the validation text."""

    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the text that the tokens decode to, without `<unk>`."""
    unknown: int = 0
    """Number of `<unk>` tokens."""
    hashes: list[str] = field(default_factory=list)
    """SHA-256 hash of each shard."""
    source_documents: list[int] = field(default_factory=list)
    """Number of documents of each of `sources`, in order; training text only."""
    conversations: int = 0
    """Number of documents that are conversations: the last ones."""
    parts: int = 0
    """Number of `documents` that are parts of documents, which the split has cut."""
    index_hash: str = ""
    """SHA-256 hash of the file with the offsets of the documents."""


def shard_path(folder: Path, name: str, index: int) -> Path:
    """Return the path of a shard."""
    return folder / f"{name}-{index:05d}.bin"


def index_path(folder: Path, name: str) -> Path:
    """Return the path of the offsets of the documents."""
    return folder / f"{name}.idx"


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise AGI2Error(f"{path} is missing")
    if path.stat().st_size != size:
        raise AGI2Error(f"{path} has {path.stat().st_size:,} bytes, not {size:,}")


class ShardWriter:
    """Appends documents to shards, or continues to after an interruption.

    Args:
        folder: the folder of the shards.
        name: `train` or `val`.
        tokenizer: the tokenizer of the ids.
        figures: what of the files there is to keep; the rest is deleted.
        shard_tokens: tokens of a shard.

    Raises:
        AGI2Error: if a file is shorter than `figures` says.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        tokenizer: Tokenizer,
        figures: SplitFigures | None = None,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self._folder, self._name, self._shard_tokens = folder, name, shard_tokens
        self._dtype = np.dtype(tokenizer.dtype).newbyteorder("<")
        self._lengths, self._unknown = tokenizer.byte_lengths(), tokenizer.unknown
        self.tokenizer = tokenizer
        self.figures = figures or SplitFigures()
        full = self.figures.tokens // shard_tokens
        for index in range(full):
            _check_size(shard_path(folder, name, index), shard_tokens * self._dtype.itemsize)
        self._index = self._open(index_path(folder, name), 8 * self.figures.documents)
        self._shard = self._open_shard()
        for path in folder.glob(f"{name}-*.bin"):
            if path > shard_path(folder, name, full):
                path.unlink()

    def _open_shard(self) -> BinaryIO:
        index, tokens = divmod(self.figures.tokens, self._shard_tokens)
        path = shard_path(self._folder, self._name, index)
        return self._open(path, tokens * self._dtype.itemsize)

    def _open(self, path: Path, size: int) -> BinaryIO:
        path.touch()
        if path.stat().st_size < size:
            _check_size(path, size)
        file = open(path, "r+b")  # noqa: SIM115 (closed by `close`)
        file.truncate(size)
        file.seek(size)
        return file

    def write_bytes(self, file: BinaryIO, data: bytes | memoryview) -> None:
        """Write to a file of this writer; every write goes through here."""
        file.write(data)

    def write(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        """Append tokens.

        Args:
            tokens: token ids, (N,).
            starts: index in them of the first token of each document that begins, (D,) int64.
        """
        self.write_bytes(self._index, (self.figures.tokens + starts).astype("<i8").data)
        self.figures.documents += len(starts)
        self.figures.text_bytes += int(self._lengths[tokens].sum())
        if self._unknown is not None:
            self.figures.unknown += int((tokens == self._unknown).sum())
        while len(tokens):
            free = self._shard_tokens - self.figures.tokens % self._shard_tokens
            part, tokens = tokens[:free], tokens[free:]
            self.write_bytes(self._shard, part.astype(self._dtype, copy=False).data)
            self.figures.tokens += len(part)
            if len(part) == free:
                self._sync(self._shard)
                self._shard.close()
                self._shard = self._open_shard()

    def sync(self) -> None:
        """Flush everything to disk."""
        self._sync(self._shard)
        self._sync(self._index)

    def _sync(self, file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files; also after an error in writing them."""
        for file in (self._shard, self._index):
            with contextlib.suppress(OSError):  # disk full: it was reported when it was written
                file.close()

    def finish(self) -> SplitFigures:
        """Flush everything, close the files and return the figures, with the files' hashes."""
        self.sync()
        self.close()
        full, rest = divmod(self.figures.tokens, self._shard_tokens)
        if not rest:
            shard_path(self._folder, self._name, full).unlink()
        paths = [shard_path(self._folder, self._name, each) for each in range(full + bool(rest))]
        *hashes, index_hash = map(sha256_of, [*paths, index_path(self._folder, self._name)])
        self.figures.hashes, self.figures.index_hash = hashes, index_hash
        return self.figures


class ShardedTokens:
    """The tokens of shards as one read-only array, which is never in memory as a whole.

    The files are mapped into memory at the first access. Pickled, it is the path of the files.

    Args:
        folder: the folder of the shards.
        name: `train` or `val`.
        dtype: `uint16` or `uint32`.
        figures: what is in the files.
        shard_tokens: tokens of a shard.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        dtype: str,
        figures: SplitFigures,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self.folder, self.name, self.figures = folder, name, figures
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._shard_tokens = shard_tokens
        self.temporary: tempfile.TemporaryDirectory[str] | None = None
        """The temporary folder of the files, which is deleted when nothing needs them any more."""
        self._maps: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_maps": {}, "temporary": None}

    def __len__(self) -> int:
        return self.figures.tokens

    @property
    def files(self) -> list[Path]:
        """The shards and the offsets of the documents."""
        count = -(-len(self) // self._shard_tokens)
        shards = [shard_path(self.folder, self.name, index) for index in range(count)]
        return [*shards, index_path(self.folder, self.name)]

    def check(self) -> None:
        """Check that every file is there and has its size.

        Raises:
            AGI2Error: if not.
        """
        *shards, index = self.files
        sizes = [self._shard_tokens * self.dtype.itemsize] * len(shards)
        if shards:
            sizes[-1] = (len(self) - (len(shards) - 1) * self._shard_tokens) * self.dtype.itemsize
        for path, size in zip([*shards, index], [*sizes, 8 * self.figures.documents], strict=True):
            _check_size(path, size)

    def _shard(self, index: int) -> np.ndarray:
        if index not in self._maps:
            path = shard_path(self.folder, self.name, index)
            self._maps[index] = np.memmap(path, self.dtype, "r")
        return self._maps[index]

    @overload
    def __getitem__(self, index: int) -> np.integer: ...

    @overload
    def __getitem__(self, index: slice) -> np.ndarray: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | np.integer:
        if not isinstance(index, slice):
            position = range(len(self))[index]
            return self[position : position + 1][0]
        start, stop, step = index.indices(len(self))
        if step != 1:
            return np.asarray(self)[index]
        parts = []
        while start < stop:
            shard, offset = divmod(start, self._shard_tokens)
            part = self._shard(shard)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        if len(parts) == 1:
            return np.asarray(parts[0])
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    @property
    def document_starts(self) -> np.ndarray:
        """Index of the first token of each document, as a memory map."""
        if not self.figures.documents:
            return np.empty(0, np.int64)
        return np.memmap(index_path(self.folder, self.name), "<i8", "r")


def token_hashes(tokens: np.ndarray | ShardedTokens) -> list[str]:
    """Return the SHA-256 hashes of tokens in shards; an array's are computed."""
    if isinstance(tokens, ShardedTokens):
        return tokens.figures.hashes
    chunks = (tokens[at : at + SHARD_TOKENS] for at in range(0, len(tokens), SHARD_TOKENS))
    return [hashlib.sha256(np.ascontiguousarray(chunk).data).hexdigest() for chunk in chunks]
