"""Servers as child processes, and HTTP clients, for `serve.py` and `serve_soak.py`.

The client is as small as it can be, because it shares the processor with the server that it
measures: HTTP/1.1 on plain sockets, and events are parsed when the clock has stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import ROOT

Address = tuple[str, int]


class ServerProcess:
    """A server in a child process, ended when the context is left.

    Args:
        command: prints a line with its address, `http://HOST:PORT`, when it listens.
        seconds: within which it must listen.
    """

    def __init__(self, command: list[str], seconds: float = 120.0) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        self._output: deque[bytes] = deque(maxlen=1_000)
        self._listens = threading.Event()
        self.address: Address = ("", 0)
        threading.Thread(target=self._read, daemon=True).start()
        if not self._listens.wait(seconds) or not self.address[1]:
            self.process.kill()
            raise SystemExit(f"{command} does not listen:\n{self.output}")

    def _read(self) -> None:
        """Read its output until its end, so that it is never blocked by it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._output.append(line)
            found = re.search(rb"http://([0-9.]+):([0-9]+)", line)
            if found and not self.address[1]:
                self.address = found[1].decode(), int(found[2])
                self._listens.set()
        self._listens.set()

    @property
    def output(self) -> str:
        """The last lines that it has printed."""
        return b"".join(self._output).decode(errors="replace")

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Context manager in which it runs; it is stopped (SIGSTOP) before and after."""
        self.process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def memory(self) -> dict[str, float]:
        """Return its resident memory in GB now and at its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kilobytes = dict(re.findall(r"(VmRSS|VmHWM):\s+([0-9]+) kB", status))
        return {"now": int(kilobytes["VmRSS"]) / 1e6, "peak": int(kilobytes["VmHWM"]) / 1e6}

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def threads(self) -> int:
        """Return the number of its threads."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def sockets(self) -> int:
        """Return the number of its open sockets."""
        links = Path(f"/proc/{self.process.pid}/fd").iterdir()
        count = 0
        for link in links:
            with contextlib.suppress(OSError):
                count += os.readlink(link).startswith("socket:")
        return count


def agi2_command(model: Path, *options: str) -> list[str]:
    """Return the command that serves a model at a free port."""
    start = "from src.cli.main import main; main()"
    return [sys.executable, "-c", start, "serve", str(model), "--port", "0", *options]


@dataclass
class Answer:
    """The response to one request; times in seconds since the request was sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[float, bytes]] = field(default_factory=list)
    """The pieces of the body, each with its time."""
    seconds: float = 0.0
    is_complete: bool = False
    """Whether the body came to its end."""

    @property
    def body(self) -> bytes:
        return b"".join(part for _, part in self.parts)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON of the events of a stream."""
        return [event for _, event in self.timed_events()]

    def timed_events(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """Yield the events of a stream with their times."""
        rest = b""
        for seconds, part in self.parts:
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield seconds, json.loads(line[6:])

    @property
    def json(self) -> Any:
        """The JSON of a response that is not a stream."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The text of the first choice, of a stream or not."""
        events = self.events or [self.json]
        return "".join(e["choices"][0]["text"] for e in events if e.get("choices"))

    @property
    def first_text(self) -> float:
        """Seconds until the first event that has text."""
        for seconds, event in self.timed_events():
            if event.get("choices") and event["choices"][0].get("text"):
                return seconds
        raise SystemExit(f"a stream without text: status {self.status}, {self.body[:300]!r}")

    @property
    def new_tokens(self) -> int:
        """Number of new tokens, as the server has counted them."""
        found = [event["usage"] for event in self.events or [self.json] if event.get("usage")]
        if not found:
            raise SystemExit(f"no usage: status {self.status}, {self.body[:300]!r}")
        return int(found[-1]["completion_tokens"])


async def send(
    address: Address,
    body: Any,
    path: str = "/v1/completions",
    *,
    method: str = "POST",
    leave_after: int | None = None,
    pause: float = 0.0,
    key: str | None = None,
) -> Answer:
    """Send a request and read the response.

    Args:
        address: of the server.
        body: JSON, or bytes as they are.
        path: of the endpoint.
        method: of HTTP.
        leave_after: close the connection after so many pieces of the body.
        pause: seconds to wait after each piece, as a slow reader does.
        key: sent as a bearer token.

    Raises:
        OSError: if the connection is refused or breaks.
        EOFError: if the server closes it in the middle of a response.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    if key is not None:
        head += f"Authorization: Bearer {key}\r\n"
    start = time.perf_counter()
    answer = Answer()
    # A slow reader's buffer is small, so that the server notices.
    limit = 2**10 if pause else 2**16
    reader, writer = await asyncio.open_connection(*address, limit=limit)
    try:
        # A server may answer and close before it has read a body that it refuses.
        with contextlib.suppress(ConnectionError):
            writer.write(head.encode() + b"\r\n" + data)
            await writer.drain()
        answer.status = int((await reader.readline()).split()[1:2][0])
        while line := (await reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            answer.headers[name.lower()] = value.strip()
        async for part in _pieces(reader, answer.headers):
            answer.parts.append((time.perf_counter() - start, part))
            if leave_after is not None and len(answer.parts) >= leave_after:
                return answer
            if pause:
                await asyncio.sleep(pause)
        answer.is_complete = True
    except IndexError:
        raise EOFError("the connection was closed before a response") from None
    finally:
        answer.seconds = time.perf_counter() - start
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return answer


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """Yield the pieces of a body, as the server has sent them.

    Raises:
        EOFError: if it is not complete.
    """
    if headers.get("transfer-encoding") != "chunked":
        yield await reader.readexactly(int(headers.get("content-length", "0")))
        return
    while line := await reader.readline():
        size = int(line, 16)
        if not size:
            return
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    raise EOFError("the connection was closed within a response")


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that is not below `share` of all, in [0, 1]."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
