"""Files on the file systems of fsspec, by URL: `s3://`, `gs://`, `hf://`, `sftp://` and others."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any

from ..errors import AGI2Error
from .formats import CACHE_FOLDERS, NOT_READ, is_known, kind_of_skipped
from .hub_datasets import choose_files, is_dataset
from .text_files import Skipped

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_INSTALL = "install it with uv sync --extra remote or pip install"
# What file systems call a hash, a version or the time of a file: the best first.
_VERSIONS = (
    "ETag",
    "etag",
    "sha256",
    "blob_id",
    "xet_hash",
    "md5Hash",
    "generation",
    "sha",
    "checksum",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "modified",
    "modify",
    "created",
)


@dataclass(frozen=True)
class RemoteFile:
    """A file on a file system of fsspec."""

    url: str
    size: int
    """Its size in bytes; 0 if the file system does not tell."""
    version: str
    """A hash, a version or a time that changes with the content; empty if there is none."""
    path: str
    """Its path on the file system."""
    filesystem: Any = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name

    def open(self) -> RemoteStream:
        """Open the file for reading.

        Raises:
            AGI2Error: if it cannot be opened.
        """
        try:
            return RemoteStream(self.filesystem.open(self.path, "rb"))
        except Exception as error:  # of any library
            raise _failed(self.url, error) from error

    def check_unchanged(self) -> None:
        """Check that the file is what it was when it was found.

        Raises:
            AGI2Error: if it has changed, or does not exist any more.
        """
        self.filesystem.invalidate_cache()
        try:
            now = _file(self.filesystem, self.filesystem.info(self.path))
        except Exception as error:
            raise _failed(self.url, error) from error
        if (now.size, now.version) != (self.size, self.version):
            raise AGI2Error(f"{self.url} has changed while it was read: give the command again")


class RemoteStream(io.RawIOBase):
    """Stream of a remote file that keeps the error with which reading it failed.

    Args:
        inner: the file object of fsspec.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._inner = inner
        self._problem: Exception | None = None

    def readable(self) -> bool:
        """Return True: the stream can be read."""
        return True

    def seekable(self) -> bool:
        """Return whether the stream can seek."""
        return bool(self._inner.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position, and return it."""
        return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        """Return the position."""
        return int(self._inner.tell())

    def readinto(self, buffer: Any) -> int:
        """Read at most as many bytes as the buffer has; return their number."""
        try:
            data = self._inner.read(len(buffer))
        except Exception as error:
            self._problem = self._problem or error
            raise
        buffer[: len(data)] = data
        return len(data)

    def check_succeeded(self, name: str) -> None:
        """Check that no read has failed.

        Raises:
            AGI2Error: if one has; the message names the file `name`.
        """
        if self._problem is not None:
            raise _failed(name, self._problem) from self._problem

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._inner.close()
        super().close()


def is_remote(source: str) -> bool:
    """Return whether a source is a URL of a file system other than the local one and HTTP."""
    scheme = _SCHEME.match(source)
    return scheme is not None and scheme[1].lower() not in ("http", "https", "file")


def check_protocol(name: str) -> None:
    """Check that the packages that read a URL are installed.

    Raises:
        AGI2Error: if one is not, or no package reads such a URL.
    """
    scheme = _SCHEME.match(name)
    assert scheme is not None
    protocol = scheme[1].lower()
    if "::" in name:
        raise AGI2Error(f"{name}: name the file itself: members of archives are read, too")
    if find_spec("fsspec") is None:
        raise AGI2Error(
            f"{name}: {protocol}:// needs fsspec, which is not installed: {_INSTALL} fsspec"
        )
    from fsspec.registry import get_filesystem_class

    try:
        get_filesystem_class(protocol)
    except ValueError as error:
        what = f"no file system is called {protocol}, as s3, gs, hf or sftp are"
        raise AGI2Error(f"{name}: {what}") from error
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or protocol
        raise AGI2Error(
            f"{name}: {protocol}:// needs {package}, which is not installed: {_INSTALL} {package}"
        ) from error


def find_remote(name: str, skipped: Skipped) -> tuple[list[RemoteFile], bool]:
    """Find the files of a remote file, folder or glob pattern, or of a dataset on the hub.

    Args:
        name: the URL.
        skipped: counts what is not read.

    Returns:
        The files, sorted; and whether the source names one file.

    Raises:
        AGI2Error: if there are none, or they cannot be listed.
    """
    check_protocol(name)
    try:
        found, base = _list(name)
    except Exception as error:  # of any library
        raise _failed(name, error) from error
    if base is None:
        return found, True
    if is_dataset(name):
        files = choose_files(name, base, found, skipped)
    elif _is_pattern(name):
        files = found
    else:
        files = [file for file in found if _is_taken(file, base, skipped)]
    if not files:
        what = "matches" if _is_pattern(name) else "there has a format that is read"
        raise AGI2Error(f"{name}: no file {what}")
    return files, False


def _list(name: str) -> tuple[list[RemoteFile], str | None]:
    """Return the files of a URL, and the path of its folder; `None` if it names one file."""
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(name)
    filesystem.invalidate_cache()
    if _is_pattern(name):
        found = filesystem.glob(path, detail=True)
        base = path
    else:
        info = filesystem.info(path)
        if info["type"] == "file":
            return [_file(filesystem, info)], None
        found = filesystem.find(path, detail=True)
        base = info["name"]
    files = [_file(filesystem, info) for info in found.values() if info["type"] == "file"]
    return sorted(files, key=str), base


def _is_pattern(name: str) -> bool:
    return any(character in name for character in "*?[")


def _file(filesystem: Any, info: dict[str, Any]) -> RemoteFile:
    key = next((key for key in _VERSIONS if info.get(key)), None)
    value = "" if key is None else info[key]
    if isinstance(value, datetime):  # which some lists have as a number
        value = value.timestamp()
    version = "" if key is None else f"{key} {value}"
    path = info["name"]
    return RemoteFile(
        filesystem.unstrip_protocol(path), info.get("size") or 0, version, path, filesystem
    )


def _is_taken(file: RemoteFile, base: str, skipped: Skipped) -> bool:
    """Return whether a file that is found in a folder may be text; count the others."""
    parts = file.path.removeprefix(base).strip("/").split("/")
    reason = ""
    if any(part.startswith(".") for part in parts):
        reason = "hidden"
    elif CACHE_FOLDERS.intersection(parts):
        reason = "installed packages or caches"
    elif not is_known(file.name):
        reason = NOT_READ
    if reason:
        kind = kind_of_skipped(file.name, reason)
        skipped.add(reason, str(file), size=file.size, kind=kind)
    return not reason


def _failed(name: str, error: Exception) -> AGI2Error:
    """Return the error for what a library raised."""
    if isinstance(error, FileNotFoundError):
        return AGI2Error(f"{name}: no such file or folder there, or it is private")
    problem = str(error).strip().split("\n")[0]
    return AGI2Error(f"{name}: cannot be read: {type(error).__name__}: {problem}")
