"""Transfer the body of an HTTP response to a file, with a time and a size limit."""

from __future__ import annotations

import base64
import contextlib
import http.client
import selectors
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from ..errors import one_line
from ..utils import convert_write_errors, human_bytes, human_time, log
from .download_names import (
    COMPRESSIONS,
    cache_folder,
    compressed_suffix,
    content_encoding,
    expects_page,
    response_charset,
    response_suffix,
    without_login,
)

_SOCKET_TIMEOUT = 30.0  # socket timeout, in seconds: the longest wait for the next byte
# Seconds to wait at the end of an answer for the server to close the connection.
_CLOSE_TIMEOUT = 1.0
_CHUNK = 2**16


@contextlib.contextmanager
def write_errors_converted() -> Iterator[None]:
    """Convert `OSError`, such as of a full disk, to an error that says how to change the disk."""
    folder = cache_folder()
    with convert_write_errors(folder, "free some space, or set AGI2_CACHE to another folder"):
        yield


class RejectedResponse(Exception):
    """A rejected HTTP response; the message is the reason."""


class UnexpectedPage(RejectedResponse):
    """A web page instead of what the URL names, such as one to sign in."""

    def __init__(self) -> None:
        super().__init__("the response is a web page, not text")


def reason_of(error: Exception) -> str:
    """Return why a transfer failed, in words."""
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


class Transfer:
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
            raise RejectedResponse(f"it takes longer than {human_time(deadline)}")
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
                    raise RejectedResponse(f"it is larger than {human_bytes(self._max_bytes)}")
                if length is not None and count > length:
                    raise RejectedResponse(f"it has more than the {length:,} bytes that it says")
                with write_errors_converted():
                    _write(self._file, chunk)
        if length is not None and count < length:
            raise RejectedResponse(f"the connection closed after {count:,} of {length:,} bytes")


def _check_response(response: Any, url: str, max_bytes: int) -> int | None:
    """Check a response's status and headers; return its length in bytes, or `None` if unknown."""
    if response.status != 200:
        raise RejectedResponse(f"{response.status} {response.reason}")
    encoding = content_encoding(response.headers)
    if encoding and encoding not in COMPRESSIONS:
        raise RejectedResponse(f"the response is compressed ({encoding})")
    if len(set(response.headers.get_all("Content-Length", []))) > 1:
        raise RejectedResponse("the server says several lengths")
    if "html" in response.headers.get_content_type() and not expects_page(url):
        raise UnexpectedPage
    length: int | None = response.length
    if length is not None and length > max_bytes:
        raise RejectedResponse(f"it is {human_bytes(length)}, more than {human_bytes(max_bytes)}")
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
            raise RejectedResponse(f"it redirects from {req.type}: to {scheme}:")
        redirected = super().redirect_request(req, fp, code, msg, headers, newurl)
        if redirected is not None and _host(redirected) != _host(req):
            log.info("%s", one_line(f"{_host(req)} redirects to {_host(redirected)}"))
        login = req.unredirected_hdrs.get("Authorization")
        if redirected is not None and login and redirected.host == req.host:
            redirected.add_unredirected_header("Authorization", login)
        return redirected


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)
