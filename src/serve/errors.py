"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, each with a status."""

from __future__ import annotations

import math
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from ..errors import AGI2Error, safe_repr
from ..inference.engine_thread import EngineClosed, QueueFull
from ..utils import log

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


class ErrorDetail(TypedDict):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of every response with a status from 400 on."""

    error: ErrorDetail


class RequestError(AGI2Error):
    """A request that is refused.

    Args:
        message: one line: what is wrong, and what to do.
        status: HTTP status.
        param: the key of the request that is wrong; only the start of a long one is kept.
        code: a name for programs.
        headers: headers of the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.param = None if param is None else param[:200]
        self.headers = dict(headers or {})

    @property
    def body(self) -> ErrorBody:
        """The body of the response."""
        server = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, server)
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }

    @property
    def response(self) -> Response:
        """The response."""
        return JSONResponse(self.body, self.status, self.headers)


def as_request_error(error: Exception) -> RequestError:
    """Convert any exception to the error that its client gets; log those that are bugs."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, QueueFull):
        seconds = str(max(1, math.ceil(error.retry_after)))
        return RequestError(
            str(error), status=429, code="queue_full", headers={"Retry-After": seconds}
        )
    if isinstance(error, EngineClosed):
        return closing()
    if isinstance(error, AGI2Error):
        return RequestError(str(error))
    if isinstance(error, HTTPException):
        return RequestError(
            error.detail,
            status=error.status_code,
            code=_CODES.get(error.status_code),
            headers=error.headers,
        )
    log.error("a request failed", exc_info=error)
    return RequestError(
        "the server failed at this request; its log has the details",
        status=500,
        code="internal_error",
    )


def closing() -> RequestError:
    """Return the error of requests that a shutdown refuses or ends."""
    return RequestError(
        "the server is shutting down", status=503, code="closing", headers={"Retry-After": "5"}
    )


def deadline_exceeded() -> RequestError:
    """Return the error of requests that take too long."""
    return RequestError(
        "the request took longer than this server allows: ask for fewer tokens",
        status=504,
        code="deadline_exceeded",
    )


async def http_exception(request: Request, error: Exception) -> Response:
    """Respond to Starlette's 404 and 405: an exception handler of `Starlette`."""
    found = as_request_error(error)
    if found.status == 404:
        found.args = (f"there is no {request.method} {safe_repr(request.url.path)}",)
    return found.response
