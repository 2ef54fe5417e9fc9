"""Read and decode text files, detect binary ones, and count what is skipped."""

from __future__ import annotations

import codecs
import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import psutil

from ..errors import AGI2Error, one_line, printable
from ..utils import human_bytes, log, open_file

STDIN = Path("-")
"""The source that means standard input."""
HEAD = 8192
"""Bytes at the beginning of a file by which binary files are detected."""
_CHUNK = 2**20
# Seconds without a byte from a pipe after which a warning is logged.
_LOG_DELAY = 2.0
# Magic numbers of document formats that may have no NUL byte, so that they look like text.
_FORMATS = {b"%PDF-": "a PDF", b"%!PS": "PostScript", b"{\\rtf": "a Rich Text (RTF) document"}


class Unreadable(AGI2Error):
    """A file cannot be read as text; if it was found in a folder, it is skipped.

    Args:
        reason: short category, by which skipped files are counted.
        message: message for the user, which names the file.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class _Entry:
    count: int
    size: int
    unit: str
    example: str


class Skipped:
    """Counter of what was skipped in a source: per reason, the count, size and first example."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def add(
        self, reason: str, example: str, *, count: int = 1, size: int = 0, unit: str = "B"
    ) -> None:
        """Add `count` skipped items of a total `size`, in bytes (`B`) or in `unit`."""
        entry = self._entries.setdefault(reason, _Entry(0, 0, unit, example))
        entry.count += count
        entry.size += size

    def merge(self, other: Skipped) -> None:
        """Add the counts of another counter."""
        for reason, entry in other._entries.items():
            self.add(reason, entry.example, count=entry.count, size=entry.size, unit=entry.unit)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def lines(self) -> Iterator[str]:
        """Yield one printable line per reason."""
        for reason, entry in self._entries.items():
            amount = f"{entry.size:,} {entry.unit}"
            if entry.unit == "B":
                amount = human_bytes(entry.size)
            size = f" ({amount})" if entry.size else ""
            yield one_line(f"{entry.count:,} {reason}{size}, such as {entry.example}")


def check_kind(mode: int, name: str) -> None:
    """Check that a path is a regular file or a pipe.

    Args:
        mode: its `st_mode`.
        name: name for the message; `-`, standard input, may also be a socket.

    Raises:
        Unreadable: if it is a device, such as a terminal, a socket or a folder.
    """
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or (stat.S_ISSOCK(mode) and name == "-")):
        raise Unreadable(
            "neither a file nor a pipe",
            f"{name}: neither a file nor a pipe: name a text file, or pipe a text into it",
        )


def check_head(path: Path, name: str | None = None) -> None:
    """Check by the first `HEAD` bytes that a regular file looks like text.

    Raises:
        Unreadable: if it is empty, binary, or cannot be read.
    """
    name = name or str(path)
    try:
        with open_file(path) as file:
            head = file.read(HEAD)
    except OSError as error:
        raise _unreadable(error, name) from error
    if len(head) < HEAD:
        _check_not_empty(head, name)
    _check_format(head, name)
    if b"\0" in head and not _is_utf16(head):
        raise _binary_error(name)


def _check_format(content: bytes, name: str) -> None:
    for beginning, what in _FORMATS.items():
        if content.startswith(beginning):
            raise Unreadable("not text", f"{name}: {what}, not a text file: save its text alone")


def _check_not_empty(content: bytes, name: str) -> None:
    if not content.strip():
        what = "contains only white space" if content else "is empty"
        raise Unreadable("empty", f"{name}: the file {what}")


def _binary_error(name: str) -> Unreadable:
    return Unreadable("not text", f"{name}: not a text file (it contains NUL bytes)")


def _unreadable(error: OSError, name: str) -> Unreadable:
    reason = error.strerror or str(error)
    return Unreadable("that cannot be read", f"{name}: cannot be read: {reason}")


def _is_utf16(content: bytes) -> bool:
    # The byte-order mark of UTF-32-LE begins with that of UTF-16-LE.
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return marked and not content.startswith(codecs.BOM_UTF32_LE)


def read_content(path: Path) -> bytes:
    """Read all bytes of a file or a pipe, which is opened and read only once.

    Raises:
        Unreadable: if it cannot be read, is truncated meanwhile, or is a pipe with more than a
            quarter of the available memory.
    """
    name = str(path)
    try:
        with (
            _waiting_logged(path) as on_data,
            # Opening a named pipe blocks until a program opens it for writing.
            open(0, "rb", closefd=False) if path == STDIN else open(path, "rb") as file,
        ):
            status = os.fstat(file.fileno())
            check_kind(status.st_mode, name)
            if not stat.S_ISREG(status.st_mode):
                return _read_stream(file, name, on_data)
            content = file.read()
    except OSError as error:
        raise _unreadable(error, name) from error
    # Standard input may be redirected from a file and already be at a later offset.
    if len(content) < status.st_size and path != STDIN:
        raise Unreadable(
            "that change",
            f"{name}: only {len(content):,} of {status.st_size:,} bytes were read: retry",
        )
    return content


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


def _read_stream(file: BufferedReader, name: str, on_data: Callable[[], None]) -> bytes:
    """Read a stream of unknown length to its end; call `on_data` at its first bytes."""
    # The copy to `bytes`, the decoded text and its tokens need memory, too.
    max_bytes = psutil.virtual_memory().available // 4
    content = bytearray()
    while chunk := file.read1(_CHUNK):  # what is there, without waiting for a full chunk
        on_data()
        content += chunk
        if len(content) > max_bytes:
            raise Unreadable(
                "too large",
                f"{name}: more than {human_bytes(max_bytes)} arrived, which exceeds the memory "
                "limit",
            )
    return bytes(content)


def decode(content: bytes, name: str) -> str:
    """Decode a file as UTF-8, or UTF-16 if it has that byte-order mark; line ends become `\\n`.

    Raises:
        Unreadable: if it is empty, binary, or in another encoding.
    """
    _check_not_empty(content, name)
    _check_format(content, name)
    try:
        text = content.decode("utf-16" if _is_utf16(content) else "utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\0" in content[:HEAD] and not _is_utf16(content):
            raise _binary_error(name) from error
        line = content[: error.start].count(b"\n") + 1
        raise Unreadable(
            "not UTF-8",
            f"{name}:{line}: not UTF-8 (byte {error.start}); save it as UTF-8, for example "
            f"with iconv -f latin1 -t utf-8",
        ) from error
    if "\0" in text:
        raise _binary_error(name)
    return unify_line_ends(text)


def unify_line_ends(text: str) -> str:
    r"""Replace all line ends (CRLF, CR) with `\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
