"""A real server: streams, clients that go away, signals, shutdown, and OpenAI's own client."""

import json
import os
import signal
import socket
import threading

import httpx
import openai
import pytest

from src.errors import AGI2Error
from src.serve.server import bind
from tests.processes import Process, needs_fork
from tests.serve.clients import RealServer, read_all, sources, wait_until

MAIN = "import sys; from src.cli.main import main; main(sys.argv[1:])"
LONG = {"model": "plain", "prompt": "a", "max_tokens": 4000, "ignore_eos": True}


HTTP = httpx.Client(timeout=60, verify=False)


def completion(body):
    data = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


def stats(server, model="plain"):
    return server.state.models._loaded[model].engine.stats


def is_idle(server):
    return stats(server).running + stats(server).waiting == 0


class TestDisconnection:
    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_goes_away_frees_its_rows(self, server, stream):
        with server.connection() as connection:
            connection.sendall(completion({**LONG, "stream": stream, "n": 2}))
            if stream:
                assert connection.recv(1000)
            wait_until(lambda: stats(server).running == 2)
        before = stats(server).generated_tokens
        wait_until(lambda: is_idle(server))
        assert stats(server).generated_tokens < before + 4000
        assert server.state.models._loaded["plain"].users == 0

    def test_a_client_that_goes_away_while_it_sends_is_forgotten(self, server):
        with server.connection() as connection:
            connection.sendall(completion(LONG)[:-5])
        assert HTTP.get(f"{server.url}/health").status_code == 200


def test_events_arrive_as_they_are_generated(server):
    """The first token is there while the last is far away."""
    with server.connection() as connection:
        connection.sendall(completion({**LONG, "stream": True}))
        found = b""
        while b"data: " not in found:
            found += connection.recv(1000)
        assert b'"finish_reason":"length"' not in found
    wait_until(lambda: is_idle(server))


def test_waiting_streams_are_kept_alive_and_a_full_queue_refuses(models):
    server = RealServer(
        sources(models, "plain"), max_rows=1, max_waiting=1, keep_alive=0.05, shutdown_seconds=0.01
    )
    try:
        first, second = (
            socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(2)
        )
        first.sendall(completion({**LONG, "stream": True}))
        assert first.recv(1000)
        second.sendall(completion({"model": "plain", "prompt": "b", "stream": True}))
        found = b""
        while b": keep-alive\n\n" not in found:
            found += second.recv(1000)
        refused = HTTP.post(f"{server.url}/v1/completions", json={"model": "plain", "prompt": "c"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.json()["error"]["code"] == "queue_full"
        first.close()
        assert b"data: [DONE]" in found + read_all(second)
        second.close()
    finally:
        server.close()


def test_requests_at_once_are_those_alone(server):
    """Each of many requests at once has the text that it has alone."""
    bodies = [
        {"model": model, "prompt": "abc"[: i % 3 + 1], "seed": i, "max_tokens": 20}
        for i in range(12)
        for model in ("plain", "chatty")
    ]
    found = [None] * len(bodies)

    def send(place):
        found[place] = HTTP.post(f"{server.url}/v1/completions", json=bodies[place])

    threads = [threading.Thread(target=send, args=[place]) for place in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for body, response in zip(bodies, found, strict=True):
        alone = HTTP.post(f"{server.url}/v1/completions", json=body)
        assert response.json()["choices"] == alone.json()["choices"]


def test_a_shutdown_finishes_what_runs(models):
    server = RealServer(sources(models, "plain"))
    with server.connection() as connection:
        connection.sendall(completion({**LONG, "stream": True, "max_tokens": 300}))
        assert connection.recv(1000)
        server.close()
        assert b"data: [DONE]" in read_all(connection)


def test_a_shutdown_ends_what_takes_too_long(models):
    server = RealServer(sources(models, "plain"), shutdown_seconds=0.05)
    with server.connection() as connection, server.connection() as whole:
        connection.sendall(completion({**LONG, "stream": True}))
        whole.sendall(completion(LONG))
        wait_until(lambda: stats(server).running == 2)
        server.close()
        end = read_all(connection)
        assert b'"code":"closing"' in end
        assert b"data: [DONE]" in end
        assert read_all(whole).startswith(b"HTTP/1.1 503")


class TestClient:
    @pytest.fixture(scope="class")
    @classmethod
    def openai(cls, server):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield client

    def test_models(self, openai):
        assert [model.id for model in openai.models.list()] == ["plain", "chatty"]
        assert openai.models.retrieve("plain").id == "plain"

    def test_completions(self, openai):
        body = {"model": "plain", "prompt": "abc", "seed": 1, "logprobs": 2}
        whole = openai.completions.create(**body)
        pieces = [each.choices[0].text for each in openai.completions.create(stream=True, **body)]
        assert "".join(pieces) == whole.choices[0].text
        assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens

    def test_chat(self, openai):
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "chatty", "messages": messages, "seed": 1}
        whole = openai.chat.completions.create(**body, logprobs=True, top_logprobs=2)
        assert whole.choices[0].logprobs.content[0].top_logprobs[1].logprob <= 0
        with openai.chat.completions.stream(
            **body, stream_options={"include_usage": True}
        ) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        assert final.choices[0].message.content == whole.choices[0].message.content
        assert final.usage.total_tokens == whole.usage.total_tokens

    def test_responses(self, openai):
        body = {"model": "chatty", "input": "hello", "extra_body": {"seed": 1}}
        whole = openai.responses.create(**body)
        with openai.responses.stream(**body) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] in ("response.completed", "response.incomplete")
        assert final.output_text == whole.output_text

    def test_embeddings(self, openai):
        found = openai.embeddings.create(model="plain", input=["abc", "abd"])  # in base64
        floats = openai.embeddings.create(model="plain", input="abc", encoding_format="float")
        assert found.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)

    def test_errors(self, openai):
        with pytest.raises(openai_error("NotFoundError")) as raised:
            openai.completions.create(model="other", prompt="a")
        assert raised.value.code == "model_not_found"
        with pytest.raises(openai_error("BadRequestError")) as raised:
            openai.completions.create(model="plain", prompt="a" * 60)
        assert raised.value.code == "context_length_exceeded"

    def test_an_error_in_a_stream(self, openai, server, monkeypatch):
        monkeypatch.setattr("src.serve.streaming.Generation.wait", fail)
        with pytest.raises(openai_error("APIError"), match="the server failed"):
            list(openai.completions.create(model="plain", prompt="a", stream=True))


def openai_error(name):
    return getattr(openai, name)


async def fail(_):
    raise KeyError("a bug")


class TestBind:
    def test_a_port_in_use_is_named(self):
        with bind("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
            with pytest.raises(AGI2Error, match=f"port {port} of 127.0.0.1 is in use"):
                bind("127.0.0.1", port)

    def test_an_address_of_another_machine_is_refused(self):
        with pytest.raises(AGI2Error, match=r"192\.0\.2\.1:0 cannot be bound to"):
            bind("192.0.2.1", 0)

    def test_a_name_that_is_none_is_refused(self):
        with pytest.raises(AGI2Error, match="host no-such-name"):
            bind("no-such-name.invalid", 0)


class TestSignals:
    def test_a_second_signal_stops_at_once(self, models):
        server = RealServer(sources(models, "plain"), max_tokens=10_000_000)
        with server.connection() as connection:
            connection.sendall(completion({**LONG, "stream": True, "max_tokens": 10_000_000}))
            assert connection.recv(1000)
            server.server.handle_exit(signal.SIGTERM, None)
            assert not server.server.force_exit
            server.server.handle_exit(signal.SIGINT, None)
            server.close()
            assert b'"code":"closing"' in read_all(connection)

    def test_they_are_handled_while_it_runs(self, server):
        before = signal.getsignal(signal.SIGTERM)
        with server.server.capture_signals():
            assert signal.getsignal(signal.SIGTERM) == server.server.handle_exit
            assert signal.getsignal(signal.SIGINT) == server.server.handle_exit
        assert signal.getsignal(signal.SIGTERM) == before


@needs_fork
class TestProcess:
    @pytest.fixture
    def process(self, models, tmp_path):
        """The command in a process: that, its port and its log. It is killed at the end."""
        log = tmp_path / "log"
        with log.open("wb") as file, open(os.devnull) as nothing:
            arguments = ["serve", models / "plain", "--port", "0"]
            process = Process(
                "-c", MAIN, *arguments, streams=[nothing.fileno(), file.fileno(), file.fileno()]
            )
        wait_until(lambda: "(Ctrl-C stops)" in log.read_text(), 600)
        yield process, int(log.read_text().partition("http://127.0.0.1:")[2].split()[0]), log
        if process.status is None:
            process.kill(signal.SIGKILL)
            process.wait()

    def test_sigterm_finishes_what_runs(self, process):
        server, port, log = process
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(completion({**LONG, "stream": True, "max_tokens": 500}))
            assert connection.recv(1000)
            server.kill(signal.SIGTERM)
            assert b"data: [DONE]" in read_all(connection)
        assert server.wait() == 0
        assert "stopping: running requests have 30 s" in log.read_text()
        assert "Traceback" not in log.read_text()

    def test_after_a_kill_the_next_server_answers(self, process, models):
        server, port, _ = process
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(completion({**LONG, "stream": True}))
            assert connection.recv(1000)
            server.kill(signal.SIGKILL)
            assert b"[DONE]" not in read_all(connection)  # cut, so that a client notices
        server.wait()
        again = RealServer(sources(models, "plain"), port=port)
        url = f"http://127.0.0.1:{port}/v1/completions"
        assert HTTP.post(url, json={"model": "plain", "prompt": "a"}).status_code == 200
        again.close()
