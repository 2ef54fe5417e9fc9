"""The files of the page, in a table that is made at the start: no path of a request is opened."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from .endpoints import Call, Endpoint, Handler

FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"


def file_endpoints() -> list[Endpoint]:
    """Return an endpoint for each file of the page; the page itself is at `/`. They need no key."""
    return [
        Endpoint(
            "GET",
            "/" if path.name == _INDEX else f"/static/{path.name}",
            _handler(path.read_bytes(), _TYPES[path.suffix]),
            is_public=True,
        )
        for path in sorted(FOLDER.iterdir())
        if path.suffix in _TYPES
    ]


def _handler(content: bytes, kind: str) -> Handler:
    async def show_file(call: Call) -> Response:
        return Response(content, headers={"Content-Type": kind})

    return show_file
