"""Download text files, with a time and a size limit, and cache them on disk."""

from __future__ import annotations

import base64
import codecs
import contextlib
import http.client
import os
import selectors
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, BinaryIO

from ..errors import AGI2Error, one_line
from ..utils import (
    convert_write_errors,
    human_bytes,
    human_time,
    log,
    sync_file,
    sync_folder,
)
from .charsets import UTF8, encoding_of_mark, is_wide
from .documents import ReadOptions, SourceReport
from .download_names import (
    COMPRESSIONS,
    cache_folder,
    cached_path,
    charset_of,
    compressed_suffix,
    content_encoding,
    expects_page,
    find_cached,
    response_charset,
    response_suffix,
    without_login,
)
from .format_readers import read_input
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
from .inputs import open_input
from .text_files import Unreadable

DEADLINE = 1800.0
"""Total timeout of a download, in seconds."""
MAX_BYTES = 4 * 10**9
"""Maximum size of a download, in bytes."""
_SOCKET_TIMEOUT = 30.0  # socket timeout, in seconds: the longest wait for the next byte
# Seconds to wait at the end of an answer for the server to close the connection.
_CLOSE_TIMEOUT = 1.0
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
    with _write_errors_converted():
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
    except (_RejectedResponse, OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, AGI2Error):
            raise
        path = cached_path(url)
        page = f", or the page as {path.name}.html" if isinstance(error, _UnexpectedPage) else ""
        raise AGI2Error(
            f"{url}: cannot be downloaded ({_reason(error)}); fetch it by other means and save "
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
        transfer = _Transfer(url, file, max_bytes or MAX_BYTES)
        transfer.run(deadline or DEADLINE)
    path = cached_path(url, transfer.suffix)
    charset = _checked_charset(temporary, url, path.name, transfer.charset)
    _check_content(url, temporary, path.name, _with_charset(options, charset))
    path = cached_path(url, transfer.suffix, charset)
    with _write_errors_converted():
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    return path


def _with_charset(options: ReadOptions, charset: str | None) -> ReadOptions:
    """Return options with the encoding that a server named, unless they have one."""
    return options if options.encoding else replace(options, encoding=charset or None)


@contextlib.contextmanager
def _write_errors_converted() -> Iterator[None]:
    """Convert `OSError`, such as of a full disk, to an error that says how to change the disk."""
    folder = cache_folder()
    with convert_write_errors(folder, "free some space, or set AGI2_CACHE to another folder"):
        yield


class _RejectedResponse(Exception):
    """A rejected HTTP response; the message is the reason."""


class _UnexpectedPage(_RejectedResponse):
    """A web page instead of what the URL names, such as one to sign in."""

    def __init__(self) -> None:
        super().__init__("the response is a web page, not text")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    problem = getattr(error, "reason", error)
    if isinstance(problem, TimeoutError):
        return f"no byte for {human_time(_SOCKET_TIMEOUT)}"
    if isinstance(problem, http.client.IncompleteRead):
        return "the connection closed before the end, or its chunks are damaged"
    if type(problem) is http.client.BadStatusLine:
        return "the answer is not HTTP"
    return str(problem) or type(error).__name__


class _Transfer:
    """One HTTP request whose body is streamed to a file.

    It runs in a daemon thread, so that the deadline bounds the total time: a socket timeout covers
    neither a DNS lookup nor a server that sends one byte per second.
    """

    def __init__(self, url: str, file: BinaryIO, max_bytes: int) -> None:
        self._url = url
        self._file = file
        self._max_bytes = max_bytes
        self._problem: BaseException | None = None
        self._is_cancelled = threading.Event()
        self.suffix = self.charset = ""
        """The suffix of the format, and the encoding, that the response names."""

    def run(self, deadline: float) -> None:
        """Run the transfer for at most `deadline` seconds; re-raise its exception, if any."""
        thread = threading.Thread(target=self._run_in_thread, daemon=True)
        thread.start()
        try:
            thread.join(deadline)
        finally:
            self._is_cancelled.set()
        if thread.is_alive():
            raise _RejectedResponse(f"it takes longer than {human_time(deadline)}")
        if self._problem is not None:
            raise self._problem

    def _run_in_thread(self) -> None:
        try:
            self._copy()
        except BaseException as error:
            self._problem = error

    def _copy(self) -> None:
        with _opener().open(_request(self._url), timeout=_SOCKET_TIMEOUT) as response:
            length = _check_response(response, self._url, self._max_bytes)
            self.suffix = response_suffix(self._url, response.url, response.headers)
            self.suffix += compressed_suffix(self._url, response.headers)
            self.charset = response_charset(response.headers)
            count = 0
            if length is not None:
                response.length = length + 1  # to see whether there is more than it said
            # `read1` makes one system call, so that the loop sees `_is_cancelled` between two.
            while not self._is_cancelled.is_set():
                if count == length and not _is_ready(response):
                    break
                chunk = response.read1(_CHUNK)
                if not chunk:
                    break
                count += len(chunk)
                if count > self._max_bytes:
                    raise _RejectedResponse(f"it is larger than {human_bytes(self._max_bytes)}")
                if length is not None and count > length:
                    raise _RejectedResponse(f"it has more than the {length:,} bytes that it says")
                with _write_errors_converted():
                    _write(self._file, chunk)
        if length is not None and count < length:
            raise _RejectedResponse(f"the connection closed after {count:,} of {length:,} bytes")


def _check_response(response: Any, url: str, max_bytes: int) -> int | None:
    """Check a response's status and headers; return its length in bytes, or `None` if unknown."""
    if response.status != 200:
        raise _RejectedResponse(f"{response.status} {response.reason}")
    encoding = content_encoding(response.headers)
    if encoding and encoding not in COMPRESSIONS:
        raise _RejectedResponse(f"the response is compressed ({encoding})")
    if len(set(response.headers.get_all("Content-Length", []))) > 1:
        raise _RejectedResponse("the server says several lengths")
    if "html" in response.headers.get_content_type() and not expects_page(url):
        raise _UnexpectedPage
    length: int | None = response.length
    if length is not None and length > max_bytes:
        raise _RejectedResponse(f"it is {human_bytes(length)}, more than {human_bytes(max_bytes)}")
    return length


def _is_ready(response: Any) -> bool:
    """Return whether a connection has more bytes, or is closed; wait for that a moment."""
    with selectors.DefaultSelector() as selector:
        selector.register(response, selectors.EVENT_READ)
        return bool(selector.select(_CLOSE_TIMEOUT))


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of some bytes to an unbuffered file."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


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
        raise _RejectedResponse("the answer is empty")
    if is_page(head) and not expects_page(url):
        raise _UnexpectedPage
    check_head(path, url, options, filename)
    try:
        with open_input(path, options, SourceReport(url)) as opened:
            for _ in read_input(replace(opened, name=url, filename=filename)):
                pass
    except Unreadable as problem:
        if problem.reason in OF_DOWNLOADS:
            raise
        # Else it depends on the options.


OF_DOWNLOADS = ("damaged", "not text", "without text")
"""What may be wrong with a downloaded file that will not be once it is downloaded again."""


def _request(url: str) -> urllib.request.Request:
    url, login = without_login(url)
    # Percent-encode spaces and non-ASCII characters; `%` is safe, so that nothing is encoded twice.
    url = urllib.parse.quote(url, safe="".join(map(chr, range(33, 127))))
    headers = {"User-Agent": "agi2", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers)
    if login:
        user = urllib.parse.unquote(login).encode()
        # Unredirected, so that credentials are not sent to another host.
        request.add_unredirected_header(
            "Authorization", "Basic " + base64.b64encode(user).decode("ascii")
        )
    return request


def _host(request: urllib.request.Request) -> str:
    return (request.host or "").rpartition("@")[2]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirect handler that follows up to 5 redirects, to HTTP(S) only, never HTTPS to HTTP."""

    max_redirections = 5
    max_repeats = 2
    inf_msg = "more than 5 redirects, or one to itself: "

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Create the redirected request, with the credentials of `req` if the host is the same."""
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise _RejectedResponse(f"it redirects from {req.type}: to {scheme}:")
        redirected = super().redirect_request(req, fp, code, msg, headers, newurl)
        if redirected is not None and _host(redirected) != _host(req):
            log.info("%s", one_line(f"{_host(req)} redirects to {_host(redirected)}"))
        login = req.unredirected_hdrs.get("Authorization")
        if redirected is not None and login and redirected.host == req.host:
            redirected.add_unredirected_header("Authorization", login)
        return redirected


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)
