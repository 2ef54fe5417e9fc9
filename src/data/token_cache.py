"""The folder of tokenized corpora: hashes of files, the key of a corpus, and its lock."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import AGI2Error, one_line
from ..utils import WriteError, human_bytes, log, read_json_object, sha256_of, write_text
from .builtin import BUILTINS, TEXT_VERSION, TEXTS
from .builtin_conversations import VERSION
from .documents import ReadOptions
from .download_names import cache_folder
from .preprocess import load_preprocessor
from .remote import RemoteFile
from .sources import Source, SourceFile, Sources, find_sources, is_pipe

# Windows has no fcntl.
fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None
FILE_HASHES = "files.json"
"""The file in the cache with the hashes of sources and shards."""
LOCK = ".lock"
# Nanoseconds: a file changed within them before it was hashed may change again without another
# time stamp, since file systems count time in steps of up to 2 s.
_UNCERTAIN = 2 * 10**9
_MAX_ENTRIES = 500_000
_MAX_BYTES = 250_000_000


@contextlib.contextmanager
def convert_cache_errors(folder: Path) -> Iterator[None]:
    """Convert `OSError` (disk full, no permission) to an error message that names the folder.

    Raises:
        AGI2Error: instead of `OSError`.
    """
    try:
        yield
    except (OSError, WriteError) as error:
        reason = getattr(error if isinstance(error, OSError) else error.__cause__, "strerror", None)
        raise AGI2Error(
            f"the tokens cannot be kept in {folder}: {reason or error}; free some space, "
            "or set token_cache to another folder"
        ) from error


def find_cache(choice: str | None) -> Path | None:
    """Return the folder in which tokenized corpora are kept, created if it does not exist.

    Args:
        choice: a folder, `off`, or `None` for `corpora` in the cache folder.

    Returns:
        The folder; `None` if it is off, or if the cache folder cannot be written.

    Raises:
        AGI2Error: if a folder was chosen that cannot be written.
    """
    if choice == "off":
        return None
    if choice is not None:
        folder = Path(choice).expanduser()
        with convert_cache_errors(folder):
            _check_writable(folder)
        return folder
    try:
        folder = cache_folder() / "corpora"
        _check_writable(folder)
    except (AGI2Error, OSError) as error:
        log.info("%s", one_line(f"the tokens are not kept for the next run: {error}"))
        return None
    return folder


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, created if it does not exist; wait if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a") as file:
        if try_lock(file) is False:
            log.info("another process is tokenizing this text: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(file: IO[str]) -> bool | None:
    """Lock a file until it is closed, unless another process has locked it.

    Returns:
        Whether it is locked now; `None` if there are no locks.
    """
    try:
        if fcntl is None:
            return None
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has none
        log.debug("%s cannot be locked", file.name)
        return None
    return True


def delete_unused(root: Path) -> None:
    """Delete the corpora in a cache that no run has used for `_KEPT_DAYS` days."""
    oldest = time.time() - _KEPT_DAYS * 86400
    for folder in root.iterdir():
        is_own = re.fullmatch(r"(parts-)?[0-9a-f]{32}|reading-[0-9a-f]{8}", folder.name)
        with contextlib.suppress(OSError):  # another process has deleted it
            if is_own and folder.stat().st_mtime < oldest:
                size = human_bytes(sum(each.stat().st_size for each in folder.iterdir()))
                log.info(
                    "deleting %s (%s), which no run has used for %d days", folder, size, _KEPT_DAYS
                )
                shutil.rmtree(folder)


_KEPT_DAYS = 90


def delete_files(folder: Path) -> None:
    """Delete the files of a corpus, except its lock and folders that other programs have made."""
    for path in folder.iterdir():
        if path.name != LOCK and not path.is_dir():
            path.unlink()


def stamp_of(path: Path) -> list[int]:
    """Return what changes if a file does: size, times of modification and change, inode number."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class FileHashes:
    """SHA-256 hashes of files, remembered in a JSON file with the stamps that the files had.

    A file whose stamp is unchanged is not read again, unless it was young when it was hashed.

    Args:
        path: the JSON file; a damaged one is ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, list[Any]] = {}
        self._is_changed = False
        with contextlib.suppress(AGI2Error):
            if path.exists():
                self._entries = read_json_object(path, _MAX_BYTES)

    def get(self, path: Path) -> tuple[str, list[int]]:
        """Return the hash of a file, and its stamp.

        Raises:
            OSError: if it cannot be read.
        """
        name, stamp = os.path.abspath(path), stamp_of(path)
        known = self._entries.get(name)
        if isinstance(known, list) and known[:-1] == stamp:
            return str(known[-1]), stamp
        now = time.time_ns()
        digest = sha256_of(path)
        if now - max(stamp[1:3]) > _UNCERTAIN and stamp_of(path) == stamp:
            self._entries[name] = [*stamp, digest]
            self._is_changed = True
        return digest, stamp

    def is_known(self, path: Path) -> bool:
        """Return whether the hash of a file was remembered."""
        return os.path.abspath(path) in self._entries

    def remember(self, path: Path, stamp: list[int], digest: str) -> None:
        """Remember a hash that another process has computed."""
        self._entries[os.path.abspath(path)] = [*stamp, digest]
        self._is_changed = True

    def save(self) -> None:
        """Save the hashes of the files that still exist, if the folder can be written."""
        if not self._is_changed:
            return
        kept = {name: entry for name, entry in self._entries.items() if os.path.exists(name)}
        kept = dict(list(kept.items())[-_MAX_ENTRIES:])
        with contextlib.suppress(AGI2Error):
            write_text(self._path, json.dumps(kept))
        self._is_changed = False


@dataclass(frozen=True)
class Files:
    """The files of sources, as they were when they were hashed."""

    identity: list[list[Any]]
    """Name and hash of each file, in order; the folder of a file is not part of it."""
    stamps: dict[Path, list[int]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, *_ in self.stamps.values())

    def check_unchanged(self) -> None:
        """Check that no file has changed since.

        Raises:
            AGI2Error: if one has.
        """
        for path, stamp in self.stamps.items():
            with convert_source_errors(path):
                if stamp_of(path) != stamp:
                    raise AGI2Error(f"{path} has changed while it was read: give the command again")


@contextlib.contextmanager
def convert_source_errors(path: Path) -> Iterator[None]:
    """Convert `OSError` to an error message that says that a source cannot be read."""
    try:
        yield
    except OSError as error:
        raise AGI2Error(f"{path}: cannot be read: {error.strerror or error}") from error


def identify(
    groups: Iterable[Sources], hashes: FileHashes, reading: ReadOptions | None = None
) -> Files | None:
    """Hash the files of groups of sources.

    Args:
        groups: sources to train on, and to validate on.
        hashes: the hashes that are known.
        reading: how they are read, on which it depends which files of a folder are.

    Returns:
        The files; `None` if a source is a pipe, which can be read only once, or the text depends on
        a function whose source cannot be hashed.

    Raises:
        AGI2Error: if a source is missing or cannot be read.
    """
    stamps: dict[Path, list[int]] = {}
    found = (find_sources(group, options=reading) if group else [] for group in groups)
    identity = identity_of(found, lambda file: identify_file(file, hashes, stamps), reading, stamps)
    return None if identity is None else Files(identity, stamps)


def identity_of(
    groups: Iterable[list[Source]],
    identify_one: Callable[[SourceFile], list[str]],
    reading: ReadOptions | None,
    stamps: dict[Path, list[int]],
) -> list[list[Any]] | None:
    """Return `Files.identity` of groups of sources, or `None` as `identify` does.

    Args:
        groups: the sources.
        identify_one: returns what identifies a file; nothing for a pipe, or if that is not known.
        reading: how they are read.
        stamps: stamps of files, to which those of a user's function are added.
    """
    identity: list[list[Any]] = []
    if reading is not None and reading.preprocess is not None:
        preprocessor = load_preprocessor(reading.preprocess)
        if preprocessor.identity is None:
            log.info("the text is read again by each run: %s has no source", preprocessor.name)
            return None
        identity.append(preprocessor.identity)
        for path in preprocessor.module.files:
            with convert_source_errors(path):
                stamps[path] = stamp_of(path)
    for sources in groups:
        identity.append([])
        for source in sources:
            identity.append([])
            for file in source.files:
                known = identify_one(file)
                if not known:
                    return None
                identity[-1] += known
    return identity


def identify_file(path: SourceFile, hashes: FileHashes, stamps: dict[Path, list[int]]) -> list[str]:
    """Return what identifies a file, and add its stamp; nothing for a pipe, or if not known."""
    if isinstance(path, RemoteFile):
        return [str(path), str(path.size), path.version] if path.version else []
    if str(path) in BUILTINS:
        version = TEXT_VERSION if str(path) in TEXTS else VERSION
        return [str(path), sys.version, sysconfig.get_path("stdlib"), str(version)]
    with convert_source_errors(path):
        if is_pipe(path):
            return []
        digest, stamps[path] = hashes.get(path)
    return [path.name, digest]


# Libraries on which the text or the tokens depend, some of them optional.
_LIBRARIES = (
    "tokenizers",
    "charset-normalizer",
    "pyarrow",
    "pypdfium2",
    "selectolax",
    "zstandard",
)


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def implementation() -> dict[str, Any]:
    """Return a hash of the code that reads and tokenizes, and the versions that it depends on."""
    package = Path(__file__).resolve().parents[1]
    code = hashlib.sha256()
    for path in sorted([*package.glob("data/*.py"), *package.glob("token*/*.py")]):
        code.update(path.read_bytes())
    code.update((package / "tokenizer.py").read_bytes())
    # Python's own modules read mail, tables and web pages, and normalize Unicode.
    libraries = [platform.python_version(), *map(_version, _LIBRARIES)]
    return {"code": code.hexdigest(), "libraries": libraries}


def corpus_key(parts: Mapping[str, Any]) -> str:
    """Return the key of a corpus: a hash of all that its tokens depend on, and of this code.

    Args:
        parts: JSON-serializable.
    """
    everything = {**parts, **implementation()}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]
