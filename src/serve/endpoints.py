"""One endpoint: reads and checks the body, calls the handler, answers, ends what a client leaves.

A handler is `async def handler(call, body)` or `async def handler(call, **path_parameters)`. It
runs in a task that is cancelled when the client disconnects; what it has opened with `call` is
closed after the response, in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..inference.sequence import Sequence
from .bodies import Body, parse_body
from .errors import RequestError, as_request_error, deadline_exceeded
from .metrics import Metrics
from .models import ModelRegistry, ServedModel
from .settings import ServeSettings
from .streaming import Event, EventStream, Generation, JSONBody

P = ParamSpec("P")
R = TypeVar("R")
_LONG_TEXT = 10_000
"""Characters that take about a millisecond to tokenize."""


@dataclass(frozen=True)
class State:
    """What all requests share."""

    settings: ServeSettings
    models: ModelRegistry
    metrics: Metrics
    description: Mapping[str, Any]
    """The OpenAPI description."""


class Writer(Protocol):
    """Writes the response to one request, whole or in events."""

    def response(self, generation: Generation) -> Event:
        """Return the response to a generation that is finished."""

    def events(self, generation: Generation) -> AsyncIterator[tuple[str, Event]]:
        """Yield the events of a stream, each with its name ("" for none)."""


class Call:
    """One request in progress.

    Args:
        state: what all requests share.
        stack: closed after the response.
    """

    def __init__(self, state: State, stack: AsyncExitStack) -> None:
        self.state = state
        self._stack = stack
        self._deadline = time.monotonic() + state.settings.deadline

    async def model(self, name: str) -> ServedModel:
        """Return a model, loaded; it stays loaded until the end of the request.

        Raises:
            RequestError: if there is no model of this name, or no memory for it now.
        """
        return await self._stack.enter_async_context(self.state.models.use(name))

    def check_deadline(self) -> None:
        """Check that the request may take longer.

        Raises:
            RequestError: if its deadline has passed.
        """
        if time.monotonic() >= self._deadline:
            raise deadline_exceeded()

    async def respond(
        self,
        served: ServedModel,
        sequences: Iterable[Sequence],
        writer: Writer,
        *,
        choices: int = 1,
        stream: bool | None = False,
    ) -> Response:
        """Generate sequences and write the response; they are cancelled at the end of the request.

        Args:
            served: their model.
            sequences: those of a prompt one after the other.
            writer: writes the response.
            choices: number of sequences of each prompt.
            stream: whether to respond in events, while they are generated.

        Raises:
            QueueFull: if too many wait.
            EngineClosed: if the server is shutting down.
            RequestError: if one ends without a result.
        """
        generation = Generation(
            served.engine, list(sequences), choices, self._deadline, self.state.metrics
        )
        self._stack.callback(generation.cancel)
        if stream:
            return EventStream(writer.events(generation), self.state.settings.keep_alive)
        await generation.finish()
        return JSONBody(writer.response(generation))


async def in_thread_if_long(
    characters: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Call a function that tokenizes text; in a thread if it would hold up other requests.

    Args:
        characters: length of the text.
        function: what to call.
        *args: its arguments.
        **kwargs: its keyword arguments.
    """
    if characters > _LONG_TEXT:
        return await asyncio.to_thread(function, *args, **kwargs)
    return function(*args, **kwargs)


Handler = Callable[..., Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """A method of a path, with what the documentation says about it.

    Args:
        method: `GET` or `POST`.
        path: with `{parameters}`.
        handler: see the module; its docstring is the description.
        body: what a `POST` takes.
        result: type of the response, a `TypedDict`.
        event: type of the events of a stream, if there may be one.
        is_public: whether it needs no key.
        media_type: of a response without a `result`.
    """

    method: str
    path: str
    handler: Handler
    body: type[Body] | None = None
    result: Any = None
    event: Any = None
    is_public: bool = False
    media_type: str = "text/plain"


class EndpointApp:
    """The ASGI application of an endpoint."""

    def __init__(self, endpoint: Endpoint, state: State) -> None:
        self.endpoint = endpoint
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; stop when the client disconnects."""
        try:
            arguments = await self._arguments(scope, receive)
        except ClientDisconnect:
            return
        except Exception as error:
            await as_request_error(error).response(scope, receive, send)
            return
        # The response is sent in this task, so that its end cancels both.
        work = asyncio.create_task(self._respond(arguments, scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work

    async def _arguments(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        endpoint = self.endpoint
        arguments = dict(scope.get("path_params", {}))
        data = await _read(receive)  # a GET may have a body, too, which means nothing
        if endpoint.body is not None:
            _check_content_type(scope)
            arguments["body"] = parse_body(endpoint.body, data)
        return arguments

    async def _respond(
        self, arguments: dict[str, Any], scope: Scope, receive: Receive, send: Send
    ) -> None:
        async with AsyncExitStack() as stack:
            try:
                response = await self.endpoint.handler(Call(self._state, stack), **arguments)
            except Exception as error:
                response = as_request_error(error).response
            await response(scope, receive, send)


def _check_content_type(scope: Scope) -> None:
    """Check that a body is declared as JSON: a form of another site cannot declare it."""
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    kind = kinds[0].decode("latin-1") if len(kinds) == 1 else ""
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(
            "the body must be JSON: send the header Content-Type: application/json",
            status=415,
            code="unsupported_media_type",
        )


async def _read(receive: Receive) -> bytes:
    """Return the body of a request.

    Raises:
        ClientDisconnect: if the client has gone.
    """
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    """Return when the client has disconnected."""
    kind = ""
    while kind != "http.disconnect":
        kind = (await receive())["type"]
