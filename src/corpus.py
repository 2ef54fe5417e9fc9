"""Sources (files, folders, globs, URLs, built-in text) as a stream of documents."""

from __future__ import annotations

import ast
import codecs
import csv
import glob
import hashlib
import http.client
import io
import json
import os
import re
import sysconfig
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import AGI2Error
from .utils import atomic_path, log, writing

BUILTIN = "builtin:python-docs"
TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".csv")
_HEAD = 8192


def read_documents(sources: str | Iterable[str], text_field: str = "text") -> Iterator[str]:
    """Every document of every source, in order.

    A `.txt`, `.md` or other text file is a document; a `.jsonl` file holds one a line and a `.csv`
    file one a row, in `text_field`. A folder gives its files with those four endings, at any
    depth, sorted. All text is UTF-8; line ends become `\\n`.

    Args:
        sources: paths, globs, `http(s)://` addresses or `builtin:python-docs`.
        text_field: field of `.jsonl`, column of `.csv`.

    Raises:
        AGI2Error: where a source is missing, empty, not text, or without that field; before the
            first document for all that shows without reading everything.
    """
    sources = [sources] if isinstance(sources, str) else list(sources)
    if not sources:
        raise AGI2Error("no sources: name a text file, a folder, or builtin:python-docs")
    # Every source is found before the first is read.
    found = [[None] if source == BUILTIN else find_files(source) for source in sources]
    for path in (path for files in found for path in files):
        yield from python_docs() if path is None else _read_file(path, text_field)


def check_sources(sources: str | Iterable[str]) -> None:
    """Raise for every source that cannot be read, without reading or downloading any.

    Raises:
        AGI2Error: as `read_documents`.
    """
    for source in [sources] if isinstance(sources, str) else sources:
        if source != BUILTIN and not _is_url(source):
            find_files(source)


def find_files(source: str) -> list[Path]:
    """The files of one source, a URL's cached copy among them.

    Raises:
        AGI2Error: where there are none, or one is empty or binary.
    """
    if source.startswith("builtin:"):
        raise AGI2Error(f"{source}: the only built-in source is {BUILTIN}")
    if _is_url(source):
        return [download(source)]
    if not source.strip():
        raise AGI2Error("a source is an empty text: name a file, a folder, or " + BUILTIN)
    name = os.path.expanduser(source)
    if os.path.isdir(name):
        inside = (p for p in Path(name).rglob("*") if p.suffix.lower() in TEXT_SUFFIXES)
        files = sorted(p for p in inside if p.is_file())
        if not files:
            raise AGI2Error(f"{source}: no {', '.join(TEXT_SUFFIXES)} file in this folder")
    elif os.path.exists(name):
        files = [Path(name)]
    else:
        matches = glob.glob(name, recursive=True)
        files = sorted(Path(match) for match in matches if os.path.isfile(match))
        if not files:
            raise AGI2Error(f"{source}: no such file; paths are relative to {Path.cwd()}")
    for file in files:
        _check_head(file)
    return files


def _check_head(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise AGI2Error(f"{path}: cannot be read: {error.strerror}") from error
    if not head.strip() and len(head) < _HEAD:
        raise AGI2Error(f"{path}: the file is empty")
    if b"\0" in head and not _is_utf16(head):
        raise AGI2Error(f"{path}: not a text file (it holds NUL bytes)")


def _is_utf16(content: bytes) -> bool:
    # UTF-32's mark begins with UTF-16's.
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return marked and not content.startswith(codecs.BOM_UTF32_LE)


def _read_text(path: Path) -> str:
    """A file's text: UTF-8, or UTF-16 where its first bytes say so."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-16" if _is_utf16(content) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise AGI2Error(
            f"{path}:{line}: not UTF-8 (byte {error.start}); save it as UTF-8, for example "
            f"with iconv -f latin1 -t utf-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_file(path: Path, text_field: str) -> Iterator[str]:
    text = _read_text(path)
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        documents: Iterable[str] = _jsonl(path, text, text_field)
    elif suffix == ".csv":
        documents = _csv(path, text, text_field)
    else:
        documents = [strip_gutenberg(text)]
    empty = True
    for document in documents:
        if document.strip():
            empty = False
            yield document
    if empty:
        raise AGI2Error(f"{path}: holds no text")


def _jsonl(path: Path, text: str, field: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise AGI2Error(f"{path}:{number}: not JSON: {reason}") from error
        document = entry.get(field) if isinstance(entry, dict) else entry
        if not isinstance(document, str):
            raise AGI2Error(f"{path}:{number}: no text in the field {field!r}; set text_field")
        yield document.encode("utf-8", "replace").decode()  # JSON may hold half a character


def _csv(path: Path, text: str, field: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # the most that every platform takes
    rows = csv.DictReader(io.StringIO(text))
    columns = rows.fieldnames or []
    if field not in columns:
        raise AGI2Error(f"{path}: no column {field!r} among {', '.join(columns)}; set text_field")
    for row in rows:
        yield row[field] or ""


def strip_gutenberg(text: str) -> str:
    """The text between Project Gutenberg's start and end lines; all of it where there are none."""
    marker = r"^\s*\*\*\* ?{} OF TH(?:E|IS) PROJECT GUTENBERG.*?\*\*\*[^\n]*$"
    flags = re.MULTILINE | re.DOTALL | re.IGNORECASE
    start = re.search(marker.format("START"), text[:20_000], flags)
    end = re.search(marker.format("END"), text, flags)
    if start is None or end is None:
        return text
    return text[start.end() : end.start()].strip() + "\n"


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def cache_folder() -> Path:
    """Where downloads are kept: `$AGI2_CACHE`, or the platform's folder for caches."""
    if chosen := os.environ.get("AGI2_CACHE"):
        return Path(chosen)
    platform_default = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"
    base = os.environ.get(platform_default)
    return (Path(base) if base else Path.home() / ".cache") / "agi2"


def download(url: str) -> Path:
    """The cached copy of a URL's text, fetched the first time.

    Raises:
        AGI2Error: where it cannot be fetched; the message says where to put the file by hand.
    """
    # The name ends as the address does, since the ending says how to read the file.
    name = re.sub(r"[^\w.-]", "_", url.split("?")[0].rsplit("/", 1)[-1])[-80:] or "text.txt"
    cached = cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if not cached.exists():
        log.info("downloading %s", url)
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "agi2"})
            with urllib.request.urlopen(request, timeout=30) as response:
                content = response.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise AGI2Error(
                f"{url}: cannot be downloaded ({reason}); fetch it by other means and save it "
                f"as {cached}"
            ) from error
        with writing(cached):
            cached.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(cached) as beside:
            beside.write_bytes(content)
    _check_head(cached)
    return cached


def python_docs() -> Iterator[str]:
    """English that every CPython carries: its language reference and its library's docstrings.

    `pydoc_data.topics` is what `help("if")` shows. The docstrings are read by parsing the
    standard library's source; nothing of it is imported or run. Only paragraphs of prose are
    kept: no tables, code or markup.
    """
    from pydoc_data.topics import topics

    for name in sorted(topics):
        if text := prose(topics[name]):
            yield text
    for path in _library_files():
        if text := prose("\n\n".join(_docstrings(path))):
            yield text


def _library_files() -> list[Path]:
    """The standard library's public modules, sorted; neither its tests nor what is installed."""
    files = []
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = set(subfolders) - _SKIPPED_FOLDERS
        modules = [name for name in names if name.endswith(".py") and not name.startswith("_")]
        files += [Path(folder, name) for name in modules]
    return sorted(files)


_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
_SKIPPED_FOLDERS |= {"pydoc_data", "encodings", "turtledemo", "idle_test", "__pycache__"}


def prose(text: str) -> str:
    """The paragraphs of plain sentences in a text, one a line, without markup."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        words = " ".join(re.sub(r"[`*]|\s+", lambda m: " " * m[0].isspace(), paragraph).split())
        plain = len(re.findall(r"[A-Za-z ,.']", words))
        is_sentence = re.match(r"[A-Z][a-z]*\b", words) and words.endswith((".", ":", "!", "?"))
        if is_sentence and words.count(" ") >= 6 and plain >= 0.95 * len(words):
            paragraphs.append(words)
    return "\n\n".join(paragraphs) + "\n" * bool(paragraphs)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # a library may ship templates that are no code
        return
    yield from _docstrings_below(tree)


def _docstrings_below(node: ast.AST) -> Iterator[str]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
        yield docstring
    # Expressions are most of a tree, and hold no docstrings.
    for statement in getattr(node, "body", ()):
        yield from _docstrings_below(statement)
