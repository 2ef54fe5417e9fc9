"""Yield the members of zip and tar archives, which are read and never extracted to disk."""

from __future__ import annotations

import contextlib
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import IO, Any, Self, cast

from .compression import Limits, check_depth, damaged
from .formats import (
    CACHE_FOLDERS,
    NOT_READ,
    TAR,
    ZIP,
    Format,
    is_known,
    is_unnamed,
    kind_of_skipped,
)
from .inputs import BLOCK, Input, buffered
from .text_files import Unreadable
from .zip_layout import unlisted_bytes


def members(source: Input, format_: Format) -> Iterator[Input]:
    """Yield the members of an archive that may be documents; count the others as skipped.

    A member is to be read before the next one is taken.

    Raises:
        Unreadable: if the archive is damaged, encrypted, nested too deeply, or unpacks to too much.
    """
    check_depth(source)
    yield from _zip_members(source) if format_ is ZIP else _tar_members(source)


def _zip_members(source: Input) -> Iterator[Input]:
    file = source.seekable()
    size = file.seek(0, 2)
    limits = Limits(source, lambda: size)
    encrypted = taken = 0
    with open_zip(source, file) as archive:
        for info in archive.infolist():
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            is_folder = info.filename.endswith("/")  # a damaged name may be empty
            kind = "folder" if is_folder else "link" if is_link else "file"
            if not _is_taken(source, info.filename, kind, info.file_size):
                continue
            if info.flag_bits & 1:
                _skip(source, "encrypted", info.filename, info.file_size)
                encrypted += 1
                continue
            taken += 1
            limits.check(info.file_size)  # before its beginning is read
            member = zip_member(source, archive, info, limits)
            with member.stream:
                yield member
        with _damage_named(source, ZIP):  # positions in a damaged directory may be negative
            unlisted = unlisted_bytes(file, archive)
        source.not_read(unlisted, "with data in no member, not read")
    if encrypted and not taken:
        raise source.error(
            "encrypted", "encrypted: unpack it with its password, and name the files"
        )


@contextlib.contextmanager
def open_zip(source: Input, file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive.

    Raises:
        Unreadable: if it is damaged.
    """
    with _damage_named(source, ZIP):
        archive = zipfile.ZipFile(file)
    with archive:
        yield archive


def zip_member(
    source: Input, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits
) -> Input:
    """Return an input of a member of a zip archive.

    To read it raises `Unreadable` if it is damaged, encrypted, or compressed in a way that is not
    read. The other members can be read.
    """
    name = f"{source.name}: {info.filename}"
    try:
        opened: Any = archive.open(info)
    except NotImplementedError:
        how = "compressed in a way that is not read"
        advice = f"{how} (method {info.compress_type}): unpack the archive, and name the files"
        opened = _Closed(Unreadable(how, f"{name}: {advice}"))
    except Unreadable as problem:  # of a stream below
        opened = _Closed(problem)
    except Exception as error:  # damaged archives raise many types
        opened = _Closed(damaged(replace(source, name=name, depth=source.depth + 1), error, ZIP))
    return _member(source, info.filename, opened, ZIP, limits)


class _Closed:
    """Stream of a member that cannot be opened: to read it raises the error."""

    def __init__(self, problem: Unreadable) -> None:
        self._problem = problem

    def read(self, _size: int) -> bytes:
        """Raise the error."""
        raise self._problem


def _tar_members(source: Input) -> Iterator[Input]:
    stream = _Forward(source)
    limits = Limits(source, stream.tell)
    while True:  # archives may be joined by `cat`
        with _damage_named(source, TAR):
            archive = tarfile.TarFile(fileobj=cast(IO[bytes], stream), tarinfo=_Header)
        while (info := _next_member(source, archive)) is not None:
            archive.members = []  # type: ignore[attr-defined]  # which keeps every member
            kind = "file" if info.isreg() else "folder" if info.isdir() else "link"
            if _is_taken(source, info.name, kind, info.size):
                yield _member(source, info.name, archive.extractfile(info), TAR, limits)
        following = stream.skip_zeros()
        if not _is_header(following):
            break
    source.not_read(len(following) + sum(map(len, source.blocks())))


def _next_member(source: Input, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _damage_named(source, TAR):
        return archive.next()


def _is_header(block: bytes) -> bool:
    """Return whether a block is the header of a member of a tar archive."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


@contextlib.contextmanager
def _damage_named(source: Input, format_: Format) -> Iterator[None]:
    """Convert exceptions of a library to an error that names the archive."""
    try:
        yield
    except Unreadable:  # of a stream below, whose message names what is wrong
        raise
    except Exception as error:  # damaged archives raise many types
        raise damaged(source, error, format_) from error


class _Header(tarfile.TarInfo):
    """Header of a member; a wrong or missing one is an error, not the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next header.

        Raises:
            tarfile.ReadError: if there is neither a valid header nor the end mark.
        """
        try:
            header = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, without the end mark") from error
        return header

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        # Names and attributes, which the package reads into memory.
        if self.type in _EXTENDED and self.size > _MAX_EXTENDED:
            raise tarfile.InvalidHeaderError("a header is too large")  # type: ignore[attr-defined]
        return super()._proc_member(archive)  # type: ignore[misc]


_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
_MAX_EXTENDED = 2**20


class _Forward:
    """Stream of an input that seeks forward only, so that no member has to be in memory."""

    def __init__(self, source: Input) -> None:
        self._source = source
        self._position = 0
        self._ahead = b""

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, position: int) -> None:
        """Move forward to a position, or to the end if that comes first."""
        while self._position < position and self.read(min(BLOCK, position - self._position)):
            pass

    def read(self, size: int) -> bytes:
        """Read `size` bytes, or those that are left."""
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        if len(data) < size:
            data += self._source.stream.read(size - len(data))
        self._position += len(data)
        return data

    def skip_zeros(self) -> bytes:
        """Move to the next block that is not zero; return it, or no bytes if there is none."""
        while (block := self.read(tarfile.BLOCKSIZE)) and not block.strip(b"\0"):
            pass
        self._ahead = block
        self._position -= len(block)
        return block


def _is_taken(source: Input, name: str, kind: str, size: int) -> bool:
    """Return whether a member may be a document; count another file as skipped."""
    if kind == "folder":
        return False
    parts = PurePosixPath(name.replace("\\", "/")).parts  # of Windows in some zip archives
    reason = ""
    if kind == "link":
        reason = "links or devices"
    elif any(part.startswith(".") and part != ".." for part in parts):
        reason = "hidden"
    elif CACHE_FOLDERS.intersection(parts):
        reason = "installed packages or caches"
    elif not (is_known(name) or is_unnamed(name)):  # the reader checks what has no suffix
        reason = NOT_READ
    if reason:
        _skip(source, reason, name, size)
    return not reason


def _skip(source: Input, reason: str, name: str, size: int) -> None:
    source.report.skipped.add(
        f"members of archives {_WORDING.get(reason, reason)}",
        f"{source.name}: {name}",
        size=size,
        unit="bytes unpacked",
        kind=kind_of_skipped(name, reason),
    )


_WORDING = {
    "hidden": "that are hidden",
    "links or devices": "that are links or devices",
    "encrypted": "that are encrypted",
    "installed packages or caches": "of installed packages or caches",
}


def _member(source: Input, name: str, opened: Any, format_: Format, limits: Limits) -> Input:
    label = f"{source.name}: {name}"

    def convert(error: Exception) -> Unreadable:
        # Of a zip archive, the other members can still be read.
        depth = source.depth + (format_ is ZIP)
        return damaged(replace(source, name=label, depth=depth), error, format_)

    return replace(
        source,
        name=label,
        filename=PurePosixPath(name).name,
        stream=buffered(opened, convert, limits.add),
        file=None,
        depth=source.depth + 1,
    )
