"""What is checked before a request is read: host, origin, key, body; and headers of each response.

Pure ASGI, so that nothing is buffered. A page of another site that a browser on this machine shows
must not reach the server: names that resolve to it are refused (DNS rebinding), and so are requests
with the origin of another site. There is no CORS.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import socket
import time
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import printable, safe_repr
from ..utils import log
from .endpoints import State
from .errors import RequestError
from .settings import ServeSettings

MAX_HEAD = 64 * 1024
"""Bytes of a request's address and headers together."""
_HEADER = 32
"""Bytes that a header counts in addition to its name and value, as in HTTP/2."""
_MAX_DISCARDED = 64 * 2**20
"""Bytes of a body that are received although the request is refused."""
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; "
    b"img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}


class Guard:
    """ASGI middleware: refuses requests that may not be read, adds headers, logs each response.

    Args:
        app: what it protects.
        state: has the settings: hosts, key and limits.
        public: the paths that need no key.
        observe: called with the scope, the status and the seconds of each response.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: State,
        public: Collection[str],
        observe: Callable[[Scope, int, float], None],
    ) -> None:
        self._app = app
        self.state = state
        self._settings = settings = state.settings
        self._public = frozenset(public)
        self._observe = observe
        self._names = _own_names(settings)
        key = settings.api_key
        self._key = None if key is None else key.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: by the application, or with an error."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # uvicorn is set up without WebSockets
        start, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": with_security(message["headers"])}
            await send(message)

        try:
            try:
                self._check(scope)
            except RequestError as error:
                error.headers["Connection"] = "close"
                await _discard_body(scope, receive, self._settings)
                await error.response(scope, receive, send_with_headers)
                return
            limited = _LimitedBody(scope, receive, self._settings)
            await self._app(scope, limited, send_with_headers)
        finally:
            seconds = time.perf_counter() - start
            self._observe(scope, status, seconds)
            # No query, header or body: a prompt must not be in a log.
            path = printable(scope["path"])[:200]
            log.debug("%s %s %d %.3f s", scope["method"], path, status, seconds)

    def _check(self, scope: Scope) -> None:
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + _HEADER for name, value in scope["headers"])
        if size > MAX_HEAD:
            raise RequestError(
                f"the address and the headers are larger than {MAX_HEAD:,} bytes",
                status=431,
                code="headers_too_large",
            )
        headers = _Headers(scope)
        host = headers.single(b"host")
        self._check_host(host)
        self._check_origin(headers, host)
        if scope["path"] not in self._public:
            self._check_key(headers.single(b"authorization"))
        length = headers.single(b"content-length")
        if length.isdigit() and int(length[:20]) > self._settings.max_body:
            raise _too_large(self._settings.max_body)

    def _check_host(self, host: str) -> None:
        """Check that a client has reached this server by its address, or by one of its names."""
        name = _host_name(host)
        if name.lower() in self._names:
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            address = None
        # An address cannot be rebound as a name can.
        if address is not None and (address.is_loopback or not self._settings.is_loopback):
            return
        raise RequestError(
            f"the Host {safe_repr(host)} is not one of this server's: add it with --allow-host",
            status=403,
            code="host_not_allowed",
        )

    def _check_origin(self, headers: _Headers, host: str) -> None:
        """Check that a request is not one of a page of another site."""
        origin = headers.single(b"origin")
        is_foreign = bool(origin) and not _is_same_origin(origin, host)
        # Browsers send it without an origin, too, as for an image.
        site, mode = headers.single(b"sec-fetch-site"), headers.single(b"sec-fetch-mode")
        is_embedded = site in ("cross-site", "same-site") and mode != "navigate"
        if is_foreign or is_embedded:
            raise RequestError(
                "requests of pages of other sites are refused",
                status=403,
                code="origin_not_allowed",
            )

    def _check_key(self, authorization: str) -> None:
        if self._key is None:
            return
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode("utf-8", "surrogateescape")
        # In constant time: how long it takes does not depend on where they differ.
        is_equal = hmac.compare_digest(given, self._key)
        if scheme.lower() != "bearer" or not is_equal:
            raise RequestError(
                "this server needs its API key: send it as Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


class _Headers:
    """The headers of a request of which the server takes one each."""

    def __init__(self, scope: Scope) -> None:
        self._headers = scope["headers"]

    def single(self, name: bytes) -> str:
        """Return the value of a header; "" if it is missing.

        Raises:
            RequestError: if it is there more than once.
        """
        values = [value for key, value in self._headers if key == name]
        if len(values) > 1:
            raise RequestError(f"more than one header {name.decode()}", code="duplicate_header")
        return values[0].decode("latin-1") if values else ""


def _own_names(settings: ServeSettings) -> frozenset[str]:
    """Return the names, in lower case, by which a browser may reach this server."""
    names = {"localhost", settings.host, *settings.allowed_hosts}
    if not settings.is_loopback:
        names.add(socket.gethostname())
    return frozenset(name.lower() for name in names)


def _host_name(host: str) -> str:
    """Return the host of `host` or `host:port`, of IPv6 without brackets; "" if it is invalid."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    is_plain = parts.netloc == host and parts.username is None and not parts.path
    return (parts.hostname or "") if is_plain else ""


def _is_same_origin(origin: str, host: str) -> bool:
    scheme, separator, rest = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and rest.lower() == host.lower()


def with_security(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return headers with those that a browser obeys; what is there already stays."""
    names = {name.lower() for name, _ in headers}
    added = {**_HEADERS, b"cache-control": b"no-store"}
    return [*headers, *((name, value) for name, value in added.items() if name not in names)]


def _too_large(limit: int) -> RequestError:
    return RequestError(
        f"the request is larger than {limit:,} bytes", status=413, code="request_too_large"
    )


async def _discard_body(scope: Scope, receive: Receive, settings: ServeSettings) -> None:
    """Receive the body of a request that is refused, within limits, and drop it.

    A client that sends before it reads, as most do, would get a reset connection instead of the
    response. One that asks first (`Expect: 100-continue`) has not sent anything.
    """
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    if b"expect" in headers or (length.isdigit() and int(length[:20]) > _MAX_DISCARDED):
        return
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.body_seconds):
            while size < _MAX_DISCARDED:
                message = await receive()
                if not message.get("more_body", False):  # the end, or the client has gone
                    return
                size += len(message.get("body", b""))


class _LimitedBody:
    """`receive` that ends a body which is too large or too slow, also one without a length."""

    def __init__(self, scope: Scope, receive: Receive, settings: ServeSettings) -> None:
        self._scope = scope
        self._receive = receive
        self._settings = settings
        self._limit = settings.max_body
        self._seconds = settings.body_seconds
        self._end = time.monotonic() + settings.body_seconds
        self._received = 0
        self._is_complete = False

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._end - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise RequestError(
                f"the request did not arrive within {self._seconds:g} s",
                status=408,
                code="request_timeout",
                headers={"Connection": "close"},
            ) from None
        self._received += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._received > self._limit:
            if not self._is_complete:
                await _discard_body(self._scope, self._receive, self._settings)
            error = _too_large(self._limit)
            error.headers["Connection"] = "close"
            raise error
        return message
