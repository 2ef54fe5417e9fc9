"""Connections of clients that do not go on, that are too many, or that do not speak HTTP."""

import contextlib
import socket

import pytest

from tests.serve.clients import RealServer, read_all, refusal_of, sources, wait_until
from tests.serve.test_server import LONG, completion, is_idle, stats

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LAST = GET[:-2] + b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module")
def server(models):
    """A server that does not wait long."""
    server = RealServer(
        sources(models, "plain"),
        client_seconds=0.2,
        body_seconds=0.2,
        max_tokens=10_000_000,
        shutdown_seconds=0.01,
    )
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of connections, too
    yield server
    server.close()


def drip(connection, part):
    """What the server answers to bytes that come one by one, for ever."""
    found = b""
    connection.settimeout(0.02)
    for _ in range(3000):
        with contextlib.suppress(ConnectionError):
            connection.sendall(part)
        try:
            received = connection.recv(10_000)
        except TimeoutError:
            continue
        except ConnectionError:
            return found
        found += received
        if not received:
            return found
    raise AssertionError("the server has not closed the connection")


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"", b"G"),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-Drip: 1\r\n"),
        (GET[:-2], b""),
        (GET + GET[:-2], b""),
        (HEAD + b"Content-Length: 1000000\r\n\r\n{", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1", b"0"),
    ],
)
def test_a_request_that_does_not_arrive_is_ended(server, start, part):
    with server.connection() as connection:
        connection.sendall(start)
        found = drip(connection, part)
    assert found.rpartition(b"HTTP/1.1 ")[2].startswith(b"408 Request Timeout\r\n")
    assert refusal_of(found)["code"] == "request_timeout"
    assert b"x-content-type-options: nosniff" in found.lower()


@pytest.mark.parametrize("start", [b"", GET])
def test_a_connection_without_a_request_is_closed(server, start):
    with server.connection() as connection:
        connection.sendall(start)
        found = read_all(connection)
    assert found.count(b"HTTP/1.1") == bool(start)


@pytest.mark.parametrize("path", [b"/nowhere", b"/health"])
def test_a_body_that_nobody_reads_does_not_keep_a_connection(server, path):
    start = HEAD.replace(b"/v1/completions", path) + b"Content-Length: 1000000\r\n\r\n"
    with server.connection() as connection:
        connection.sendall(start)
        assert drip(connection, b" ").startswith(b"HTTP/1.1 40")


@pytest.mark.parametrize(
    "body",
    [
        {**LONG, "max_tokens": 10_000_000, "stream": True},
        {**LONG, "prompt": ["a"] * 64, "max_tokens": 20, "logprobs": 20},
    ],
)
def test_a_client_that_does_not_read_frees_its_row(server, body):
    before = stats(server).generated_tokens
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(completion(body))
        wait_until(lambda: stats(server).generated_tokens > before)
        wait_until(lambda: not server.server.server_state.connections)
        wait_until(lambda: is_idle(server))
    assert server.state.models._loaded["plain"].users == 0


def test_a_client_that_reads_at_last_gets_all(models):
    server = RealServer(sources(models, "plain"))
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = {**LONG, "prompt": ["a"] * 64, "max_tokens": 20, "logprobs": 20}
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(completion({**body, "stream": True}))
        wait_until(lambda: stats(server).generated_tokens >= 64 * 20)
        assert read_all(connection).count(b'"finish_reason":"length"') == 64
    server.close()


def test_too_many_connections_are_refused(models):
    server = RealServer(sources(models, "plain"), max_connections=2)
    connections = server.server.server_state.connections
    with server.connection() as first, server.connection():
        first.sendall(GET[:-1])
        wait_until(lambda: len(connections) == 2)
        refused = server.raw(b"")
        assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert refusal_of(refused)["code"] == "too_many_connections"
        assert b"retry-after: 5\r\n" in refused.lower()
        first.sendall(GET[-1:])
        assert first.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: not connections)
    assert server.raw(LAST).startswith(b"HTTP/1.1 200")
    server.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n folded: a\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1e3\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{no end of the chunk",
    ],
)
def test_what_is_not_http_is_refused_in_the_shape_of_an_error(server, data, caplog):
    answer = server.raw(data)
    assert answer.startswith((b"HTTP/1.1 400 Bad", b"HTTP/1.1 403 Forb", b"HTTP/1.1 431 Requ"))
    assert refusal_of(answer)["code"] in ("invalid_http", "host_not_allowed", "headers_too_large")
    assert not [record for record in caplog.records if record.exc_info]
    assert server.raw(LAST).startswith(b"HTTP/1.1 200")
