"""Download text files, with a time and a size limit, and cache them on disk."""

from __future__ import annotations

import codecs
import contextlib
import http.client
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import AGI2Error, one_line
from ..utils import log, sync_file, sync_folder
from .charsets import UTF8, encoding_of_mark, is_wide
from .documents import ReadOptions, SourceReport
from .download_names import cache_folder, cached_path, charset_of, expects_page, find_cached
from .format_readers import DAMAGED_MEMBERS, read_input
from .formats import (
    HTML,
    SUBTITLES,
    TABLE,
    TEXT,
    XML,
    check_head,
    compression_of,
    format_of,
    is_page,
)
from .http_transfer import (
    RejectedResponse,
    Transfer,
    UnexpectedPage,
    reason_of,
    write_errors_converted,
)
from .inputs import open_input
from .text_files import Unreadable

DEADLINE = 1800.0
"""Total timeout of a download, in seconds."""
MAX_BYTES = 4 * 10**9
"""Maximum size of a download, in bytes."""
_CHUNK = 2**16


def is_url(source: str) -> bool:
    """Return whether a source is an HTTP or HTTPS URL."""
    return source.lower().startswith(("http://", "https://"))


def download(
    url: str,
    *,
    deadline: float | None = None,
    max_bytes: int | None = None,
    options: ReadOptions | None = None,
) -> Path:
    """Download a text file, unless it is cached.

    Args:
        url: `http://` or `https://` URL, optionally with `user:password@`.
        deadline: total timeout in seconds, `DEADLINE` by default.
        max_bytes: maximum size in bytes, `MAX_BYTES` by default.
        options: how it will be read.

    Returns:
        The path of the cached file.

    Raises:
        AGI2Error: if the download fails; the message names the path at which to save the file by
            hand. Nothing of it remains in the cache.
    """
    options = options or ReadOptions()
    cached = find_cached(url)
    if cached is not None:
        _check_cached(cached, url, options)
        return cached
    log.info("%s", one_line(f"downloading {url}"))
    folder = cache_folder()
    temporary = folder / f".{uuid.uuid4().hex}"
    with write_errors_converted():
        folder.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    try:
        with _failures_named(url):
            return _download_to(temporary, url, options, (deadline, max_bytes))
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _failures_named(url: str) -> Iterator[None]:
    """Convert the exceptions of a download to an error that says where to save the file."""
    try:
        yield
    except (RejectedResponse, OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, AGI2Error):
            raise
        path = cached_path(url)
        page = f", or the page as {path.name}.html" if isinstance(error, UnexpectedPage) else ""
        raise AGI2Error(
            f"{url}: cannot be downloaded ({reason_of(error)}); fetch it by other means and save "
            f"it as {path}{page}"
        ) from error


def _check_cached(cached: Path, url: str, options: ReadOptions) -> None:
    """Check the beginning of the file of a URL in the cache, which may have been saved by hand."""
    check_head(cached, options=_with_charset(options, charset_of(cached)))
    if cached == cached_path(url) and not expects_page(url) and is_page(_head(cached)):
        raise AGI2Error(f"{cached}: a web page, not text: to read it, rename it to {cached}.html")


def _download_to(
    temporary: Path, url: str, options: ReadOptions, limits: tuple[float | None, int | None]
) -> Path:
    """Download a URL to a file, and move it to its place in the cache if it is not damaged."""
    deadline, max_bytes = limits
    with open(temporary, "wb", buffering=0) as file:  # else closing it may fail on a full disk
        transfer = Transfer(url, file, max_bytes or MAX_BYTES)
        transfer.run(deadline or DEADLINE)
    path = cached_path(url, transfer.suffix)
    charset = _checked_charset(temporary, url, path.name, transfer.charset)
    _check_content(url, temporary, path.name, _with_charset(options, charset))
    path = cached_path(url, transfer.suffix, charset)
    with write_errors_converted():
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    return path


def _with_charset(options: ReadOptions, charset: str | None) -> ReadOptions:
    """Return options with the encoding that a server named, unless they have one."""
    return options if options.encoding else replace(options, encoding=charset or None)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_CHUNK)


def _checked_charset(path: Path, url: str, filename: str, charset: str) -> str:
    """Return the encoding that a server names if a file is a text in it; else an empty text."""
    head = _head(path)
    if not charset or encoding_of_mark(head) or compression_of(filename, head):
        return ""
    if format_of(filename, head) not in _MARKED:
        return ""
    if not is_wide(charset) and _is_encoded(path, UTF8):
        if not _is_encoded(path, "ascii"):
            log.warning("%s", one_line(f"{url}: the server says {charset}, but it is UTF-8"))
            return ""
    elif not _is_encoded(path, charset):
        log.warning("%s", one_line(f"{url}: the server says {charset}, which it is not"))
        return ""
    return charset


def _is_encoded(path: Path, encoding: str) -> bool:
    """Return whether all of a file is text in an encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", True)
    except UnicodeError:
        return False
    return True


# Of JSON the encoding is UTF-8, whatever the server says.
_MARKED = (TEXT, HTML, XML, TABLE, SUBTITLES)


def _check_content(url: str, path: Path, filename: str, options: ReadOptions) -> None:
    """Check that a downloaded file is undamaged, by reading it, before it enters the cache."""
    head = _head(path)
    if not head.strip():
        raise RejectedResponse("the answer is empty")
    if is_page(head) and not expects_page(url):
        raise UnexpectedPage
    check_head(path, url, options, filename)
    report = SourceReport(url)
    try:
        with open_input(path, options, report) as opened:
            for _ in read_input(replace(opened, name=url, filename=filename)):
                pass
    except Unreadable as problem:
        if problem.reason in OF_DOWNLOADS:
            raise
        # Else it depends on the options.
    for reason, entry in report.skipped.entries():
        if reason == DAMAGED_MEMBERS:
            raise RejectedResponse(entry.example)


OF_DOWNLOADS = ("damaged", "not text", "without text")
"""What may be wrong with a downloaded file that will not be once it is downloaded again."""
