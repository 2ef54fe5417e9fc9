"""Download text files, with a time and a size limit, and cache them on disk."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, BinaryIO

from ..errors import AGI2Error, one_line
from ..utils import atomic_path, convert_write_errors, human_bytes, human_time, log
from .compression import decompress
from .documents import ReadOptions, SourceReport
from .formats import check_head, compression_of, split_compression
from .inputs import open_input

DEADLINE = 1800.0
"""Total timeout of a download, in seconds."""
MAX_BYTES = 4 * 10**9
"""Maximum size of a download, in bytes."""
_SOCKET_TIMEOUT = 30.0  # socket timeout, in seconds: the longest wait for the next byte
_CHUNK = 2**16
_HTML = re.compile(rb"\s*(<!doctype\s+html|<html)", re.IGNORECASE)


def is_url(source: str) -> bool:
    """Return whether a source is an HTTP or HTTPS URL."""
    return source.lower().startswith(("http://", "https://"))


def cache_folder() -> Path:
    """Return the download cache folder: `$AGI2_CACHE`, or the platform's default.

    Raises:
        AGI2Error: if there is no home folder.
    """
    if chosen := os.environ.get("AGI2_CACHE"):
        return Path(chosen)
    platform_default = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"
    if base := os.environ.get(platform_default):
        return Path(base) / "agi2"
    try:
        return Path.home() / ".cache" / "agi2"
    except RuntimeError as error:  # neither HOME nor an entry for the user
        raise AGI2Error(
            "there is no home folder to keep a cache in: set AGI2_CACHE to a folder"
        ) from error


def cached_path(url: str) -> Path:
    """Return the cache path of a URL, whether or not it exists.

    Raises:
        AGI2Error: as in `cache_folder`.
    """
    # The suffix of the URL is kept, since it selects the reader (`.jsonl`, `.csv`).
    path = re.split("[?#]", _without_password(url)[0].split("://", 1)[1], maxsplit=1)[0]
    name = re.sub(r"[^\w.-]", "_", path.rsplit("/", 1)[-1], flags=re.ASCII)[-80:] or "text.txt"
    return cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"


def download(url: str, *, deadline: float | None = None, max_bytes: int | None = None) -> Path:
    """Download a text file, unless it is cached.

    Args:
        url: `http://` or `https://` URL, optionally with `user:password@`.
        deadline: total timeout in seconds, `DEADLINE` by default.
        max_bytes: maximum size in bytes, `MAX_BYTES` by default.

    Returns:
        The path of the cached file.

    Raises:
        AGI2Error: if the download fails; the message names the path at which to save the file by
            hand. No partial file remains in the cache.
    """
    cached = cached_path(url)
    if cached.exists():
        check_head(cached)
        return cached
    log.info("%s", one_line(f"downloading {url}"))
    with convert_write_errors(cached):
        cached.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(cached) as temporary:
        try:
            with open(temporary, "wb") as file:
                _Transfer(url, file, max_bytes or MAX_BYTES).run(deadline or DEADLINE)
            _check_content(url, temporary)
        except (_RejectedResponse, OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, AGI2Error):
                raise
            raise AGI2Error(
                f"{url}: cannot be downloaded ({_reason(error)}); fetch it by other means and save "
                f"it as {cached}"
            ) from error
    return cached


class _RejectedResponse(Exception):
    """A rejected HTTP response; the message is the reason."""


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
            count = 0
            # `read1` makes one system call, so that the loop sees `_is_cancelled` between two.
            while not self._is_cancelled.is_set() and count != length:
                rest = _CHUNK if length is None else min(_CHUNK, length - count)
                chunk = response.read1(rest)
                if not chunk:
                    break
                count += len(chunk)
                if count > self._max_bytes:
                    raise _RejectedResponse(f"it is larger than {human_bytes(self._max_bytes)}")
                with convert_write_errors(cached_path(self._url)):
                    self._file.write(chunk)
        if length is not None and count < length:
            raise _RejectedResponse(f"the connection closed after {count:,} of {length:,} bytes")


def _check_response(response: Any, url: str, max_bytes: int) -> int | None:
    """Check a response's status and headers; return its length in bytes, or `None` if unknown."""
    if response.status != 200:
        raise _RejectedResponse(f"{response.status} {response.reason}")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _RejectedResponse(f"the response is compressed ({encoding})")
    if "html" in response.headers.get_content_type() and not _expects_html(url):
        raise _RejectedResponse("the response is a web page, not text")
    length: int | None = response.length
    if length is not None and length > max_bytes:
        raise _RejectedResponse(f"it is {human_bytes(length)}, more than {human_bytes(max_bytes)}")
    return length


def _check_content(url: str, path: Path) -> None:
    """Check that a downloaded file is text, or undamaged data, before it enters the cache."""
    with open(path, "rb") as file:
        head = file.read(_CHUNK)
    if not head.strip():
        raise _RejectedResponse("the answer is empty")
    if _HTML.match(head) and not _expects_html(url):
        raise _RejectedResponse("the response is a web page, not text")
    filename = cached_path(url).name
    check_head(path, url, filename=filename)
    with open_input(path, ReadOptions(), SourceReport(url)) as opened:
        source = replace(opened, name=url, filename=filename)
        compression = compression_of(filename, head)
        if compression is not None:  # else a file that was cut short would stay in the cache
            inner, _ = split_compression(filename)
            for _ in decompress(source, compression, inner).blocks():
                pass


def _expects_html(url: str) -> bool:
    return re.split("[?#]", url, maxsplit=1)[0].lower().endswith((".html", ".htm", ".xhtml"))


def _without_password(url: str) -> tuple[str, str]:
    """Split a URL into the URL without its user information, and that user information."""
    scheme, rest = url.split("://", 1)
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    login, _, host = authority.rpartition("@")
    return f"{scheme}://{host}{rest[len(authority):]}", login


def _request(url: str) -> urllib.request.Request:
    url, login = _without_password(url)
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
        login = req.unredirected_hdrs.get("Authorization")
        if redirected is not None and login and redirected.host == req.host:
            redirected.add_unredirected_header("Authorization", login)
        return redirected


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)
