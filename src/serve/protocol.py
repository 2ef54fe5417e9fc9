"""HTTP/1.1 on a connection: uvicorn's protocol, with limits of time and of connections.

A client that does not send a request that it has begun, or does not read its response, would keep
its connection forever. The limits on a request's body are in `security`.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .errors import RequestError
from .security import with_security
from .settings import ServeSettings


class LimitedProtocol(H11Protocol):
    """One connection.

    While no request is answered, the head of the next one must arrive in time: at first, after a
    response, and once more from its first byte on. A response must be read in time whenever more
    of it waits than the buffers hold, and at the end.

    Args:
        config: uvicorn's.
        server_state: what all connections share.
        app_state: of uvicorn's lifespan.
        _loop: the event loop; None for the running one.
        settings: the limits.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: ServeSettings,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = settings
        self._timer: asyncio.TimerHandle | None = None
        """Runs while the client has to do something."""
        self._has_begun = False
        """Whether a part of the head of a request has arrived."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many connections."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._start_timer()
        if len(self.connections) > self._settings.max_connections:
            message = f"there are {self._settings.max_connections} connections, the maximum"
            headers = {"Retry-After": "5"}
            self._refuse(
                RequestError(message, status=503, code="too_many_connections", headers=headers)
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        if self._is_waiting and not self._has_begun:
            self._start_timer()
            self._has_begun = True
        if not self.transport.is_closing():
            super().data_received(data)

    def handle_events(self) -> None:
        """Begin to answer a request whose head has arrived."""
        super().handle_events()
        if not self._is_waiting:
            self._stop_timer()
            self._has_begun = False

    def on_response_complete(self) -> None:
        """Wait for the next request, or until the client has read the response."""
        self._start_timer()
        super().on_response_complete()
        if self._is_waiting:
            self._has_begun = bool(self.conn.trailing_data[0])

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        self._start_timer()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on after the client has read."""
        if not self._is_waiting:
            self._stop_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(RequestError("the request is not valid HTTP/1.1", code="invalid_http"))

    @property
    def _is_waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self._settings.client_seconds, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        """End the connection of a client that has not done in time what it had to do."""
        has_unread = self.transport.get_write_buffer_size() > 0
        if self.transport.is_closing() or has_unread or not self._is_waiting:
            self.transport.abort()
        elif self._has_begun and self.conn.our_state is h11.IDLE:
            seconds = self._settings.client_seconds
            message = f"the request did not arrive within {seconds:g} s"
            self._refuse(RequestError(message, status=408, code="request_timeout"))
        else:
            self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Send an error, unless a response has begun, and close the connection."""
        if not self._is_waiting:
            self.cycle.disconnected = True  # it must send nothing more
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response, reason = error.response, HTTPStatus(error.status).phrase.encode()
            headers = [*with_security(response.raw_headers), (b"connection", b"close")]
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=reason),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._start_timer()
