"""The process of a server: its socket, its start line, signals and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from ..errors import AGI2Error
from ..utils import human_time, log
from .app import create_app
from .endpoints import State
from .models import ModelSource
from .protocol import LimitedProtocol
from .security import MAX_HEAD
from .settings import ServeSettings

_BACKLOG = 2048
_GRACE = 5.0
"""Seconds that responses have to end after the engines were closed."""


class Server(uvicorn.Server):
    """Uvicorn with a shutdown that finishes what runs.

    The first SIGINT or SIGTERM closes the socket; running requests finish within a limit, after
    which they end with an error. The second one stops at once.
    """

    def __init__(self, config: uvicorn.Config, state: State, address: str) -> None:
        super().__init__(config)
        self.state = state
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the models, listen, and log the address."""
        await super().startup(sockets)
        names = ", ".join(self.state.models.sources)
        log.info("serving %s at %s (Ctrl-C stops)", names, self._address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what runs, within the limit."""
        seconds = self.state.settings.shutdown_seconds
        closing = asyncio.create_task(self.state.models.close(seconds))
        try:
            await super().shutdown(sockets)
        finally:
            if self.force_exit:
                await self.state.models.close(0.0)  # ends what the other one waits for
            await closing
            # So that the clients of those that were ended are told.
            await asyncio.wait([closing, *self.server_state.tasks], timeout=1.0)
        log.info("stopped")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Context manager in which signals stop the server, and are not raised again after it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; at the second signal, stop at once."""
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        log.info(
            "stopping: running requests have %s; a second signal stops at once",
            human_time(self.state.settings.shutdown_seconds),
        )


def serve(sources: Sequence[ModelSource], settings: ServeSettings) -> None:
    """Serve models until SIGINT or SIGTERM.

    Raises:
        AGI2Error: if the address cannot be bound to, or a model cannot be loaded.
    """
    with bind(settings.host, settings.port) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        uvicorn_server(sources, settings, f"http://{shown}:{port}").run([listener])


def uvicorn_server(sources: Sequence[ModelSource], settings: ServeSettings, address: str) -> Server:
    """Return a server that is not running yet.

    Args:
        sources: the models.
        settings: address, key and limits.
        address: the URL to log.
    """
    app = create_app(sources, settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http=cast(Any, partial(LimitedProtocol, settings=settings)),
        loop="asyncio",
        lifespan="on",
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_keep_alive=86_400,  # `LimitedProtocol` has its own limit
        timeout_graceful_shutdown=int(settings.shutdown_seconds + _GRACE) + 1,
    )
    return Server(config, app.state, address)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        AGI2Error: if it is in use, not one of this machine's, or may not be bound to.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AGI2Error(f"host {host}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AGI2Error(
                f"port {port} of {host} is in use: choose another with --port, or --port 0 for a "
                "free one"
            ) from error
        raise AGI2Error(f"{host}:{port} cannot be bound to: {error.strerror}") from error
    return listener
