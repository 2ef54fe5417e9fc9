"""Resolve sources (files, folders, glob patterns, pipes, URLs, remote files) to files to read."""

from __future__ import annotations

import glob
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil

from ..arguments import is_several
from ..errors import AGI2Error, safe_repr
from ..utils import human_bytes
from .builtin import BUILTIN, BUILTINS
from .documents import ReadOptions
from .download_names import charset_of
from .downloads import download, is_url
from .formats import (
    CACHE_FOLDERS,
    NOT_READ,
    check_head,
    is_known,
    is_unnamed_text,
    kind_of_skipped,
    readable_suffixes,
)
from .hub_datasets import skipped_names
from .patterns import match_parts
from .remote import RemoteFile, check_protocol, find_remote, is_remote
from .text_files import STDIN, Skipped, Unreadable, check_kind, unreadable

SourceFile = Path | RemoteFile
Sources = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

# A folder with `config.toml` and one of these is a run directory.
_RUN_FILES = ("metrics.jsonl", "model.safetensors", "checkpoints")


@dataclass
class Source:
    """A source with its files, and the files that were skipped."""

    name: str
    """The source as the user gave it."""
    is_named: bool = True
    """Whether the source names one file: an unreadable one is an error, rather than skipped."""
    files: list[SourceFile] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    charset: str | None = None
    """The encoding that the server named, of a URL."""


def list_sources(sources: Sources) -> list[str]:
    """Normalize sources to a list of strings, as in a configuration.

    Raises:
        AGI2Error: if there is no source, or one is not a path.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    if not is_several(sources):
        raise AGI2Error(f"sources must be a path or a list of paths, not {safe_repr(sources)}")
    paths = list(sources)
    if not paths:
        raise AGI2Error("no sources: name a text file, a folder, or builtin:python-docs")
    for source in paths:
        if not isinstance(source, str | os.PathLike):
            raise AGI2Error(f"sources: {safe_repr(source)} is not a path")
    return [os.fsdecode(source) for source in paths]


def find_sources(
    sources: Sources, *, fetch: bool = True, options: ReadOptions | None = None
) -> list[Source]:
    """Resolve sources to files, each file once, reading only the first bytes of each.

    Args:
        sources: one source or several.
        fetch: whether to download URLs and list remote folders; if false, their `files` are empty.
        options: how they will be read; an `encoding` allows NUL bytes.

    Raises:
        AGI2Error: if a source has no files, or a named file is not readable.
    """
    resolved: list[Source] = []
    seen: dict[object, SourceFile] = {}
    for name in list_sources(sources):
        source = _resolve(name, fetch, options or ReadOptions())
        files, source.files = source.files, []
        for path in files:
            identity = _identity(path)
            if identity not in seen:
                seen[identity] = path
                source.files.append(path)
            else:
                what = f"{path}, which is {seen[identity]}"
                source.skipped.add("read already", what, size=file_size(path))
        resolved.append(source)
    return resolved


def check_rereadable(sources: Sources, why: str, options: ReadOptions | None = None) -> None:
    """Check that no source is a pipe, which can be read only once.

    Args:
        sources: one source or several.
        why: for the message, why the text is read again.
        options: how they will be read.

    Raises:
        AGI2Error: if a source is a pipe.
    """
    for source in find_sources(sources, fetch=False, options=options):
        for path in source.files:
            if is_pipe(path):
                raise AGI2Error(
                    f"{source.name}: a pipe can be read only once, and {why}: save it to a file"
                )


def is_pipe(path: SourceFile) -> bool:
    """Return whether a file can be read only once: a pipe, or standard input."""
    if not isinstance(path, Path) or str(path) in BUILTINS:
        return False
    return path == STDIN or not path.is_file()


def _identity(path: SourceFile) -> object:
    """Return a key that all names of a file share: device and inode number, if there are any."""
    if str(path) in BUILTINS or isinstance(path, RemoteFile):
        return str(path)
    try:
        status = os.fstat(0) if path == STDIN else path.stat()
    except OSError:  # closed, or deleted since it was found: reading it raises the error
        return str(path)
    return (status.st_dev, status.st_ino) if status.st_ino else path.resolve()


def file_size(path: SourceFile) -> int:
    """Return the size of a file in bytes, or 0 if it does not exist any more."""
    if isinstance(path, RemoteFile):
        return path.size
    try:
        return path.stat().st_size
    except OSError:
        return 0


def check_total_size(sources: Iterable[Source]) -> None:
    """Check that all files together are not larger than the machine's memory.

    Raises:
        AGI2Error: if they are.
    """
    files = (path for source in sources for path in source.files)
    size, memory = sum(map(file_size, files)), psutil.virtual_memory().total
    if size > memory:
        raise AGI2Error(
            f"the sources have {human_bytes(size)}, more than this machine's memory "
            f"({human_bytes(memory)}): name fewer files"
        )


def _resolve(name: str, fetch: bool, options: ReadOptions) -> Source:
    if name in BUILTINS:
        return Source(name, files=[Path(name)])
    if name.startswith("builtin:"):
        raise AGI2Error(f"{name}: the built-in sources are {', '.join(BUILTINS)}")
    if is_url(name):
        if not fetch:
            return Source(name)
        cached = download(name, options=options)
        return Source(name, files=[cached], charset=charset_of(cached))
    if is_remote(name):
        if not fetch:
            check_protocol(name)
            return Source(name)
        skipped = Skipped()
        files, is_named = find_remote(name, skipped)
        return Source(name, is_named, list(files), skipped)
    if not name.strip():
        raise AGI2Error("a source is an empty text: name a file, a folder, or " + BUILTIN)
    is_file_url = name.lower().startswith("file://")
    path = url2pathname(urlsplit(name).path) if is_file_url else os.path.expanduser(name)
    if os.path.isdir(path):
        return _resolve_folder(name, Path(path), options)
    if os.path.exists(path):
        return Source(name, files=[_named_file(Path(path), options)])
    if os.path.lexists(path):
        raise AGI2Error(f"{name}: a broken symbolic link")
    if name == str(STDIN):
        return Source(name, files=[STDIN])
    return _resolve_pattern(name, path, options)


def _named_file(path: Path, options: ReadOptions) -> Path:
    # A pipe is not opened: bytes read for the check would be lost.
    mode = path.stat().st_mode
    check_kind(mode, str(path))
    if stat.S_ISREG(mode):
        check_head(path, options=options)
    return path


def _resolve_folder(name: str, folder: Path, options: ReadOptions) -> Source:
    source = Source(name, is_named=False)
    found = _walk(folder, source.skipped)
    candidates = [path for path in found if _is_known(path, source, options)]
    if not candidates:
        pattern = shlex.quote(os.path.join(glob.escape(name), "**", "*"))
        raise AGI2Error(
            f"{name}: no file in this folder has a format that is read: source code, "
            f"{readable_suffixes()}, each also compressed; to read all files as text: {pattern}"
        )
    return _check_found(source, candidates, options)


def _is_known(path: Path, source: Source, options: ReadOptions) -> bool:
    if is_known(path.name) or is_unnamed_text(path, options):
        return True
    kind = kind_of_skipped(path.name, NOT_READ)
    source.skipped.add(NOT_READ, str(path), size=file_size(path), kind=kind)
    return False


def _resolve_pattern(name: str, pattern: str, options: ReadOptions) -> Source:
    source = Source(name, is_named=False)
    matches = sorted(Path(match) for match in _matches(pattern, source.skipped))
    files = [path for path in matches if not os.path.isdir(path)]
    folders = [path for path in matches if os.path.isdir(path)]
    if folders and "**" not in pattern:
        source.skipped.add(
            "not a file (name the folder, or use **)", str(folders[0]), count=len(folders)
        )
    if not files:
        raise AGI2Error(f"{name}: no such file; paths are relative to {_working_folder()}")
    return _check_found(source, files, options)


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "a folder that is gone"


def _check_found(source: Source, paths: Iterable[Path], options: ReadOptions) -> Source:
    """Set the source's files to the paths, sorted, that look like text; count the others."""
    first_problem = ""
    for path in sorted(paths):
        try:
            if not path.is_file():
                check_kind(path.stat().st_mode, str(path))
                raise Unreadable("pipes", f"{path}: a pipe: name it itself")
            check_head(path, options=options)
        except (Unreadable, OSError) as error:
            problem = error if isinstance(error, Unreadable) else unreadable(error, str(path))
            source.skipped.add(problem.reason, str(problem), size=file_size(path))
            first_problem = first_problem or str(problem)
        else:
            source.files.append(path)
    if not source.files:
        raise AGI2Error(f"{source.name}: no file of it can be read; {first_problem}")
    return source


def _walk(root: Path, skipped: Skipped) -> Iterator[Path]:
    """Yield the files below a folder, in no particular order; count those that are skipped.

    Symbolic links are followed. Each folder is visited once, by its real path if that is below
    `root`: links are visited last.
    """
    folders, links = [root], list[Path]()
    seen: set[object] = set()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            identity = _identity(folder)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            skipped.add("that cannot be read", f"{folder}: {error.strerror}")
            continue
        reasons = skipped_names({entry.name for entry in entries})
        for entry in entries:
            path = Path(entry.path)
            is_folder = os.path.isdir(path)
            if reason := reasons.get(entry.name) or _skip_reason(path, is_folder):
                size = _folder_size(path) if is_folder else file_size(path)
                skipped.add(reason, str(path), size=size)
            elif not is_folder:
                yield path
            elif entry.is_symlink():
                links.append(path)
            else:
                folders.append(path)


def _folder_size(folder: Path) -> int:
    """Return the size of all files below a folder in bytes, without following links to folders."""
    return sum(
        file_size(Path(parent, name)) for parent, _, names in os.walk(folder) for name in names
    )


def _skip_reason(path: Path, is_folder: bool) -> str:
    """Return the reason to skip a file or folder found in a source; empty if there is none."""
    if path.name.startswith("."):
        return "hidden"
    if is_folder and (path.name in CACHE_FOLDERS or os.path.exists(path / "pyvenv.cfg")):
        return "installed packages or caches"
    if is_folder and _is_run(path):
        return "output of runs"
    if not is_folder and not os.path.exists(path):
        return "broken links"
    return ""


def _is_run(folder: Path) -> bool:
    return os.path.exists(folder / "config.toml") and any(
        os.path.exists(folder / name) for name in _RUN_FILES
    )


def _matches(pattern: str, skipped: Skipped) -> Iterator[str]:
    """Yield the paths that a glob pattern matches; a prefix of it that exists is literal."""
    prefix, parts = _existing_prefix(pattern)
    if "**" not in parts:
        for match in glob.glob(os.path.join(glob.escape(prefix), *parts)):
            parents = Path(match).relative_to(prefix).parents
            if any(_is_run(Path(prefix, folder)) for folder in parents if folder.name):
                skipped.add("output of runs", match, size=file_size(Path(match)))
            else:
                yield match
        return
    depth = parts.index("**")
    beginning = os.path.join(glob.escape(prefix), *parts[:depth])
    for folder in glob.glob(os.path.join(beginning, "")) if beginning else ["."]:
        # Not `glob`, whose `**` follows cyclic symbolic links.
        for path in _walk(Path(folder), skipped):
            if match_parts(path.relative_to(folder).parts, parts[depth:]):
                yield str(path)


def _existing_prefix(pattern: str) -> tuple[str, list[str]]:
    parts = list(Path(pattern).parts)
    prefix = ""
    while parts and os.path.lexists(os.path.join(prefix, parts[0])):
        prefix = os.path.join(prefix, parts.pop(0))
    return prefix, parts
