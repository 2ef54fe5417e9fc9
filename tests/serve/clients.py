"""Clients of a server: of its application in this process, and of a real one in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import httpx
import uvicorn

from src.config_loader import load_config
from src.serve.app import create_app
from src.serve.models import ModelSource
from src.serve.server import bind, uvicorn_server
from src.serve.settings import ServeSettings

ADDRESS = "http://127.0.0.1:8000"
KEY = "a-key-for-the-tests"


def sources(folder, *names):
    """The models of a folder of models."""
    return [
        ModelSource(name, load_config(folder / name / "config.toml"), str(folder / name))
        for name in names or ("plain", "chatty")
    ]


class Client:
    """Sends requests to an application and waits for the responses."""

    def __init__(self, models, **settings):
        self.app = create_app(models, ServeSettings(**settings))
        self.state = self.app.state
        self._runner = asyncio.Runner()
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url=ADDRESS
        )

    def run(self, work):
        """The result of a coroutine, in the application's event loop."""
        return self._runner.run(work)

    def get(self, path, **options):
        return self.run(self.http.get(path, **options))

    def post(self, path, **body):
        return self.run(self.http.post(path, json=body))

    def send(self, method, path, **options):
        return self.run(self.http.request(method, path, **options))

    def events(self, path, **body):
        """The events of a stream: their JSON; the last line is checked."""
        response = self.post(path, stream=True, **body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return parse_events(response.text)

    def close(self):
        async def end():
            await self.http.aclose()
            await self.state.models.close(0.0)

        self.run(end())
        self._runner.close()


def parse_events(text):
    """The JSON of server-sent events up to [DONE]."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.rpartition("data: ")[2]) for line in lines]


def refusal(response, status=400):
    """The error of a response, whose status and shape are checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return body["error"]


def refusal_of(answer: bytes):
    """The error of the last response in the bytes that a server has sent."""
    body = json.loads(answer.rpartition(b"\r\n\r\n")[2])
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return body["error"]


class RealServer:
    """A server in a thread of this process."""

    def __init__(self, models, port=0, **settings):
        self.listener = bind("127.0.0.1", port)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server: uvicorn.Server = uvicorn_server(models, ServeSettings(**settings), self.url)
        self.state = self.server.state
        self._thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self._thread.start()
        wait_until(lambda: self.server.started or not self._thread.is_alive())

    def close(self):
        self.server.should_exit = True
        self._thread.join()

    @contextlib.contextmanager
    def connection(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            yield connection

    def raw(self, data: bytes) -> bytes:
        """What the server answers to bytes, until it closes the connection."""
        with self.connection() as connection:
            connection.sendall(data)
            return read_all(connection)


def read_all(connection):
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def wait_until(condition, seconds=60):
    """Wait for a condition that another thread brings about."""
    waiting = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come about")
