"""Decompress gzip, bzip2, xz and Zstandard data as a stream, with limits against bombs."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from dataclasses import replace
from typing import Any, BinaryIO

from ..utils import human_bytes
from .formats import BZIP2, GZIP, XZ, Format
from .inputs import Input, buffered
from .text_files import Unreadable

MAX_RATIO = 250
"""Maximum ratio of decompressed to compressed bytes; text reaches 100 only if it repeats itself."""
RATIO_FROM = 2**26
"""Decompressed bytes below which the ratio is not limited."""
MAX_UNPACKED = 2**40
"""Maximum decompressed bytes of a file."""
MAX_DEPTH = 5
"""Maximum number of archives and compressed files in each other."""
# Memory of the xz and Zstandard decompressors; both formats allow gigabytes.
_MAX_WINDOW = 2**27
# Compressed bytes that are decompressed at once, to at most 16 MB: 4 bytes may stand for 128 KB.
_STEP = 512
_MAX_OUTPUT = 2**24


class Limits:
    """Limits of the bytes that are decompressed from a file or an archive.

    Args:
        source: the compressed file or the archive.
        compressed: returns the number of compressed bytes so far, or in total.
    """

    def __init__(self, source: Input, compressed: Callable[[], int]) -> None:
        self._source = source
        self._compressed = compressed
        self._size = 0

    def add(self, count: int) -> None:
        """Count decompressed bytes.

        Raises:
            Unreadable: if there are too many, in total or for the compressed size.
        """
        self._size += count
        self.check()

    def check(self, more: int = 0) -> None:
        """Check the decompressed bytes so far, and `more` to come.

        Raises:
            Unreadable: as in `add`.
        """
        size = self._size + more
        if size > MAX_UNPACKED:
            what = f"unpacks to more than {human_bytes(MAX_UNPACKED)}"
        elif size > max(RATIO_FROM, MAX_RATIO * self._compressed()):
            what = f"unpacks to more than {MAX_RATIO} times its size"
        else:
            return
        raise Unreadable(
            "that unpack to too much",
            f"{self._source.name}: {what}: unpack it and name the files",
            self._source.depth,
        )


def decompress(source: Input, format_: Format, filename: str) -> Input:
    """Return an input of the decompressed data of another.

    Args:
        source: the compressed input.
        format_: its compression.
        filename: name of the decompressed file, whose suffix selects its reader.

    Raises:
        Unreadable: if it is nested too deeply; also while the result is read, if it is damaged or
            unpacks to too much.
    """
    check_depth(source)
    count = 0

    def on_compressed(size: int) -> None:
        nonlocal count
        count += size

    def convert(error: Exception) -> Unreadable:
        return damaged(source, error, format_)

    compressed = buffered(source.stream, convert, on_compressed)
    limits = Limits(source, lambda: count)
    stream = buffered(_decompressor(compressed, format_), convert, limits.add)
    return replace(source, stream=stream, filename=filename, file=None, depth=source.depth + 1)


def check_depth(source: Input) -> None:
    """Check that archives and compressed files are not nested too deeply.

    Raises:
        Unreadable: if they are.
    """
    if source.depth >= MAX_DEPTH:
        raise source.error(
            "nested too deeply", f"more than {MAX_DEPTH} archives in each other: unpack them"
        )


def damaged(source: Input, error: Exception, format_: Format) -> Unreadable:
    """Return the error for damaged compressed data or a damaged archive."""
    what = str(error) or type(error).__name__
    name = format_.name.removeprefix("a ")
    message = f"{source.name}: damaged or cut short {name}: {what}"
    return Unreadable("damaged", message, source.depth)


def _decompressor(compressed: BinaryIO, format_: Format) -> Any:
    """Return a binary stream of decompressed data, of all members or frames."""
    if format_ is GZIP:
        return gzip.GzipFile(fileobj=compressed)
    if format_ is BZIP2:
        return _FrameReader(compressed, bz2.BZ2Decompressor)
    if format_ is XZ:
        return _FrameReader(compressed, _start_xz)
    return _FrameReader(compressed, _start_zstandard, padding=b"")


def _start_xz() -> Any:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_WINDOW)


def _start_zstandard() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()


class _FrameReader:
    """Reader of bzip2 or xz streams, or of Zstandard frames, one after the other.

    Whatever follows the last one, other than padding, is an error: `bz2.BZ2File` ends without one
    at a damaged stream after the first, `lzma.LZMAFile` has no memory limit, and the reader of
    `zstandard` does not notice data that is cut short.

    Args:
        compressed: the compressed stream.
        start: makes a decompressor of one frame.
        padding: the byte that may be between frames and after the last one, if any.
    """

    def __init__(
        self, compressed: BinaryIO, start: Callable[[], Any], padding: bytes = b"\0"
    ) -> None:
        self._compressed = compressed
        self._start = start
        self._padding = padding
        self._decompressor: Any = None
        self._unused = b""
        self._data = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; none at the end."""
        while not self._data and self._fill():
            pass
        data, self._data = self._data[:size], self._data[size:]
        return bytes(data)

    def _fill(self) -> bool:
        """Decompress the next block, perhaps to no bytes; return whether there was one."""
        if self._decompressor is None:
            block = self._next_block()
            if not block:
                return False
            if not (block := block.lstrip(self._padding)):
                return True
            self._decompressor = self._start()
        elif self._is_complete():
            block = b""
        elif not (block := self._next_block()):
            raise EOFError("the data ends too early")
        self._data = memoryview(self._decompress(block))
        if self._decompressor.eof:
            self._unused = self._decompressor.unused_data
            self._decompressor = None
        return True

    def _next_block(self) -> bytes:
        block, self._unused = self._unused or self._compressed.read(_STEP), b""
        return block

    def _is_complete(self) -> bool:
        """Return whether the decompressor has more output without more input."""
        return not getattr(self._decompressor, "needs_input", True)

    def _decompress(self, block: bytes) -> bytes:
        # 50 bytes of bzip2 may stand for 46 MB. The decompressor of `zstandard` takes no limit.
        limits = (_MAX_OUTPUT,) if hasattr(self._decompressor, "needs_input") else ()
        data: bytes = self._decompressor.decompress(block, *limits)
        return data
