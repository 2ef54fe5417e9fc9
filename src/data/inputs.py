"""Open files, pipes and standard input as streams of bytes that are counted and checked."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import printable
from ..utils import human_bytes, log
from .documents import Document, ReadOptions, SourceReport
from .remote import RemoteFile
from .text_files import STDIN, Unreadable, check_kind, unreadable

BLOCK = 2**20
"""Bytes of a read."""
MAX_WHOLE = 2**28
"""Maximum bytes of a document that must be in memory to be read, such as a web page."""
# Bytes by which a format is recognized.
_MAGIC = 512
# Seconds without a byte from a pipe after which a warning is logged.
_LOG_DELAY = 2.0


class CheckedStream(io.RawIOBase):
    """Readable binary stream that converts the errors of another, and checks what it delivers.

    Args:
        inner: a binary stream.
        convert: makes the error to raise from one that `inner` raised.
        on_read: called with the number of bytes of each read, 0 at the end.
    """

    def __init__(
        self,
        inner: Any,
        convert: Callable[[Exception], Unreadable],
        on_read: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._inner = inner
        self._convert = convert
        self._on_read = on_read
        self._is_first = True

    def readable(self) -> bool:
        """Return True: the stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at most as many bytes as the buffer has; return their number.

        The first read has at least `_MAGIC` bytes, if there are so many, even from a pipe.
        """
        data = self._read(len(buffer))
        while self._is_first and 0 < len(data) < min(_MAGIC, len(buffer)):
            more = self._read(len(buffer) - len(data))
            self._is_first = bool(more)
            data += more
        self._is_first = False
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            data: bytes = self._inner.read(size)
        except Unreadable:  # of a stream below, whose message names what is wrong
            raise
        except Exception as error:  # decompressors raise many types for damaged data
            raise self._convert(error) from error
        self._on_read(len(data))
        return data


def buffered(
    inner: Any, convert: Callable[[Exception], Unreadable], on_read: Callable[[int], None]
) -> io.BufferedReader:
    """Return a buffered `CheckedStream`."""
    return io.BufferedReader(CheckedStream(inner, convert, on_read), BLOCK)


@dataclass
class Input:
    """Bytes to read documents from: a file, a pipe, or a member of an archive."""

    name: str
    """Name for messages: `a.txt`, `a.zip: b.txt`."""
    filename: str
    """Name whose suffix selects the reader."""
    stream: io.BufferedReader
    options: ReadOptions
    report: SourceReport
    file: Any = None
    """The regular file that the stream reads, if it is not decompressed."""
    depth: int = 0
    """Number of archives and compressed files that the bytes are in."""
    is_sought: bool = False
    """Whether `file` is read instead of the stream."""
    bytes_left: int = 0
    """Bytes of `file` that `not_read` counted."""

    def error(self, reason: str, problem: str, at: str = "") -> Unreadable:
        """Return an error whose message names the input; `at` is the place there, such as `:12`."""
        return Unreadable(reason, f"{self.name}{at}: {problem}")

    def document(self, text: str, at: str = "", *, continues: bool = False) -> Document:
        """Return a document of this input; `at` is its place there, such as `:12` (the line)."""
        return Document(text, self.name + at, continues)

    def note(self, what: str, kind: str = "") -> None:
        """Count what was decided for this input; `kind` is what `KINDS` in it stands for."""
        self.report.notes.add(what, self.name, kind=kind)

    def removed(self, what: str, characters: int) -> None:
        """Count characters that were removed from a document, if any."""
        if characters > 0:
            self.report.removed.add(what, self.name, size=characters, unit="characters")

    def not_read(self, size: int, what: str = "with data after their end, not read") -> None:
        """Count bytes that belong to no document as skipped, if any; `what` says of which files."""
        if size > 0:
            is_file = self.depth == 0
            self.bytes_left += size * is_file
            unit = "B" if is_file else "bytes unpacked"
            self.report.skipped.add(what, self.name, size=size, unit=unit)

    def finish(self) -> None:
        """Read the rest of the stream, which a reader has left, and count it as not read.

        Raises:
            Unreadable: if it is damaged.
        """
        if not self.is_sought:
            self.not_read(sum(map(len, self.blocks())))

    def blocks(self) -> Iterator[bytes]:
        """Yield all bytes, in blocks."""
        while block := self.stream.read(BLOCK):
            yield block

    def read(self, limit: int | None = None) -> bytes:
        """Read all bytes.

        Raises:
            Unreadable: if there are more than `limit` bytes, `MAX_WHOLE` by default.
        """
        limit = MAX_WHOLE if limit is None else limit
        content = bytearray()
        for block in self.blocks():
            content += block
            if len(content) > limit:
                raise self.error(
                    "too large", f"more than {human_bytes(limit)}, the limit of this format"
                )
        return bytes(content)

    def seekable(self) -> IO[bytes]:
        """Return a stream that can seek, at its beginning: the file, or its bytes in memory."""
        if self.file is not None:
            self.is_sought = True
            self.file.seek(0)  # the stream has read its beginning
            return self.file
        return io.BytesIO(self.read())


@contextlib.contextmanager
def open_input(
    path: Path | RemoteFile, options: ReadOptions, report: SourceReport
) -> Iterator[Input]:
    """Open a file, a pipe or standard input, once.

    Bytes are added to `report.bytes_read` as they are read.

    Raises:
        Unreadable: if it cannot be read, or changes before its end has been read.
        AGI2Error: if that is a remote file: it may be there again later.
    """
    opening = _open_remote if isinstance(path, RemoteFile) else _open_local
    with opening(path, options, report) as opened:  # type: ignore[arg-type]
        yield opened


@contextlib.contextmanager
def _open_remote(file: RemoteFile, options: ReadOptions, report: SourceReport) -> Iterator[Input]:
    def on_read(count: int) -> None:
        report.bytes_read += count

    name = str(file)
    with file.open() as remote:
        stream = buffered(remote, lambda error: unreadable(error, name), on_read)
        is_seekable = remote.seekable()
        try:
            yield Input(name, file.name, stream, options, report, remote if is_seekable else None)
        except Unreadable:
            # Not a damaged file, which is skipped in a folder.
            remote.check_succeeded(name)
            raise
        remote.check_succeeded(name)  # a member that could not be read was skipped
    file.check_unchanged()


@contextlib.contextmanager
def _open_local(path: Path, options: ReadOptions, report: SourceReport) -> Iterator[Input]:
    name = str(path)
    with _waiting_logged(path) as on_data:
        try:
            file = _open(path)
        except OSError as error:
            raise unreadable(error, name) from error
        with file:
            status = os.fstat(file.fileno())
            check_kind(status.st_mode, name)

            def on_read(count: int) -> None:
                on_data()
                report.bytes_read += count
                if not count:
                    _check_unchanged(file.fileno(), status, name)

            stream = buffered(file, lambda error: unreadable(error, name), on_read)
            # Standard input may be redirected from a file and already be at a later offset.
            is_file = stat.S_ISREG(status.st_mode) and path != STDIN
            # Of its own, since some libraries close what they read.
            with io.FileIO(os.dup(file.fileno())) if is_file else io.BytesIO() as other:
                opened = Input(name, path.name, stream, options, report)
                opened.file = other if is_file else None
                yield opened
            _check_unchanged(file.fileno(), status, name)


def _open(path: Path) -> io.FileIO:
    # Opening a named pipe blocks until a program opens it for writing.
    return io.FileIO(0, closefd=False) if path == STDIN else io.FileIO(path)


def _check_unchanged(descriptor: int, before: os.stat_result, name: str) -> None:
    now = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        return
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise Unreadable(
            "that change", f"{name}: the file changed while it was read: retry", depth=0
        )


@contextlib.contextmanager
def _waiting_logged(path: Path) -> Iterator[Callable[[], None]]:
    """Warn if a pipe delivers no data for a while; files never block.

    Yields:
        A function to call when the first bytes have arrived.
    """
    advice = "waiting for %s: nothing has been written to this pipe; Ctrl-C stops"
    what = "standard input" if path == STDIN else printable(str(path))
    # A warning, so that --quiet does not hide why nothing happens.
    timer = threading.Timer(_LOG_DELAY, log.warning, (advice, what))
    timer.daemon = True
    if path == STDIN or not path.is_file():
        timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()
