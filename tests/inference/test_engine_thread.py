"""An engine in a thread of its own: requests from other threads, limits, failures, the end."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing

import pytest

from src.config_keys import GenerationConfig
from src.errors import AGI2Error
from src.inference.cache_memory import cache_bytes
from src.inference.engine import Engine
from src.inference.engine_thread import EngineClosed, EngineThread, QueueFull
from src.inference.model_runner import ModelRunner
from src.inference.prefix_cache import PrefixCache
from src.inference.sequence import Sequence
from tests.tiny_models import random_model

WIDTH, POSITIONS = 29, 16
MODEL = random_model(max_seq_len=POSITIONS)
TIMEOUT = 60.0


class Request:
    """A sequence, and what its consumer sees; `gate` holds up the engine at its first token."""

    def __init__(self, prompt, length=6, seed=0, gate=None, **options) -> None:
        given = GenerationConfig(max_length=length, **options)
        self.sequence = Sequence(prompt, given, POSITIONS, seed=seed)
        self.arguments = (prompt, given, POSITIONS)
        self.seed = seed
        self.counts: list[int] = []
        self.reasons: list[str | None] = []
        self.begun, self.ended = threading.Event(), threading.Event()
        self.gate = gate

    def notify(self) -> None:
        self.reasons.append(self.sequence.finish_reason)
        self.counts.append(len(self.sequence.new_tokens))
        self.begun.set()
        if self.sequence.finish_reason is not None:
            self.ended.set()
        if self.gate is not None:
            assert self.gate.wait(TIMEOUT)

    def wait(self) -> str | None:
        assert self.ended.wait(TIMEOUT)
        return self.sequence.finish_reason

    def alone(self) -> list[int]:
        twin = Sequence(*self.arguments, seed=self.seed)
        Engine(ModelRunner(MODEL, WIDTH, batch_invariant=True)).run([twin])
        return twin.tokens


def thread(max_rows=2, max_waiting=8, **options) -> EngineThread:
    return EngineThread(
        ModelRunner(MODEL, WIDTH), max_rows=max_rows, max_waiting=max_waiting, **options
    )


def submit(engine, *requests, **options) -> None:
    for each in requests:
        engine.submit(each.sequence, each.notify, **options)


def held_up(engine) -> tuple[Request, threading.Event]:
    """Submit a request at whose first token the engine's thread stops until the event is set."""
    gate = threading.Event()
    first = Request([1], 50, gate=gate)
    submit(engine, first)
    assert first.begun.wait(TIMEOUT)
    return first, gate


def test_requests_of_several_threads_get_the_tokens_that_they_get_alone():
    requests = [Request([index % 3, 2, 3], 3 + index, seed=index) for index in range(12)]
    with closing(thread(4, 12, prefix_cache=PrefixCache(2**20, 4))) as engine:
        clients = [
            threading.Thread(target=submit, args=(engine, *requests[start::3]))
            for start in range(3)
        ]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert [each.wait() for each in requests] == ["length"] * 12
        stats = engine.stats
    for each in requests:
        assert each.sequence.tokens == each.alone()
        # One call for each token, with the reason at the last.
        assert each.counts == list(range(1, each.counts[-1] + 1))
        assert each.reasons == [None] * (len(each.counts) - 1) + ["length"]
    assert (stats.running, stats.waiting, stats.prompt_tokens) == (0, 0, 36)
    assert stats.generated_tokens == sum(3 + index for index in range(12))
    assert stats.steps >= stats.generated_tokens / 4
    assert 0 <= stats.cached_tokens == sum(each.sequence.cached_tokens for each in requests)
    assert stats.kv_cache_bytes > 0
    assert stats.prefix_cache_bytes == 0  # no block of the grid is complete


def test_requests_beyond_the_limits_are_refused_all_or_none():
    with closing(thread(1, 2)) as engine:
        first, gate = held_up(engine)
        waiting = [Request([2], 1), Request([3], 1)]
        submit(engine, waiting[0])
        several = [Sequence([4], GenerationConfig(), POSITIONS) for _ in range(2)]
        with pytest.raises(QueueFull, match=r"^2 requests are waiting, .*: try again in 1 s$"):
            engine.submit_all(several, first.notify)
        submit(engine, waiting[1])
        with pytest.raises(QueueFull) as caught:
            submit(engine, Request([5]))
        assert caught.value.retry_after == 1.0
        assert (engine.stats.running, engine.stats.waiting) == (1, 2)
        with pytest.raises(AGI2Error, match="4 texts at once are more than the 3 that may run"):
            engine.submit_all([*several, *several], first.notify)
        speculative = Request([1], temperature=0, speculative="ngram")
        with pytest.raises(AGI2Error, match='speculative = "ngram" decodes one'):
            submit(engine, speculative)
        gate.set()
        assert [each.wait() for each in (first, *waiting)] == ["length"] * 3
        later = Request([5], 1)
        submit(engine, later)
        assert later.wait() == "length"


def test_the_time_to_retry_is_estimated_from_the_last_requests(monkeypatch):
    with closing(thread(1, 0)) as engine:
        for times, expected in (([0.0, 4.0, 8.0], 4.0), ([0.0, 0.1], 1.0), ([0.0, 900.0], 60.0)):
            engine._finish_times.clear()
            engine._finish_times.extend(times)
            first, gate = held_up(engine)
            with pytest.raises(QueueFull) as caught:
                submit(engine, Request([5]))
            assert caught.value.retry_after == expected
            gate.set()
            engine.cancel(first.sequence)
            assert first.wait() in ("cancelled", "length")


def test_what_is_cancelled_ends_before_the_next_step_also_if_it_waits():
    with closing(thread(1, 5)) as engine:
        first, gate = held_up(engine)
        waiting, last = Request([2]), Request([3], 2)
        submit(engine, waiting, last)
        for _ in range(2):
            engine.cancel(first.sequence)
            engine.cancel(waiting.sequence)
        gate.set()
        assert (first.wait(), waiting.wait(), last.wait()) == ("cancelled", "cancelled", "length")
        assert len(first.sequence.new_tokens) == 1
        assert (waiting.counts, waiting.reasons) == ([0], ["cancelled"])
        engine.cancel(last.sequence)  # it has ended
        engine.cancel(Request([1]).sequence)  # it was never submitted
    assert last.sequence.finish_reason == "length"


def test_a_deadline_ends_running_and_waiting_requests():
    with closing(thread(1, 5)) as engine:
        gate = threading.Event()
        first, waiting = Request([1], 50, gate=gate), Request([2])
        submit(engine, first, deadline=time.monotonic() + TIMEOUT)
        assert first.begun.wait(TIMEOUT)
        submit(engine, waiting, deadline=time.monotonic())
        # As if the first one's had passed while it was held up.
        with engine._wake:
            key = id(first.sequence)
            engine._requests[key] = engine._requests[key]._replace(deadline=time.monotonic())
        gate.set()
        assert (first.wait(), waiting.wait()) == ("deadline", "deadline")
        assert (len(first.sequence.new_tokens), waiting.sequence.new_tokens) == (1, [])


@pytest.mark.parametrize("error", [AGI2Error("no memory"), ZeroDivisionError("a bug")])
@pytest.mark.parametrize("place", ["hidden_states", "reserve_rows", "restore"])
def test_a_step_that_fails_ends_its_requests_and_no_other(error, place, monkeypatch, caplog):
    """In the forward pass; before the first is admitted; and while one is being admitted."""
    caplog.set_level(logging.ERROR, "agi2")
    with closing(thread(1, 5, prefix_cache=PrefixCache(0))) as engine:
        first, gate = held_up(engine)
        if place != "hidden_states":
            engine.cancel(first.sequence)
        waiting = [Request([2], 2), Request([3], 2)]
        submit(engine, *waiting)
        owner = MODEL if place == "hidden_states" else engine._engine.runner
        original = getattr(owner, place)
        failures = [error]

        def failing(*arguments, **options):
            if failures:
                raise failures.pop()
            return original(*arguments, **options)

        monkeypatch.setattr(owner, place, failing)
        gate.set()
        ended = first if place == "hidden_states" else waiting[0]
        assert ended.wait() == "error"
        is_known = isinstance(error, AGI2Error)
        assert ended.sequence.error == ("no memory" if is_known else "an internal error")
        others = [each for each in waiting if each is not ended]
        assert [each.wait() for each in others] == ["length"] * len(others)
        for each in others:
            assert each.sequence.tokens == each.alone()
    (record,) = caplog.records
    assert record.getMessage() == f"a step of the engine failed: {error}"
    assert bool(record.exc_info) == (not is_known)


def test_a_consumer_that_fails_is_cancelled_and_no_other(caplog):
    caplog.set_level(logging.ERROR, "agi2")

    def closed_loop():
        raise RuntimeError("the event loop is closed")

    with closing(thread()) as engine:
        gone = Sequence([1], GenerationConfig(max_length=50), POSITIONS)
        short = Sequence([1], GenerationConfig(max_length=1), POSITIONS)
        other = Request([2])
        engine.submit(gone, closed_loop)
        engine.submit(short, closed_loop)
        submit(engine, other)
        assert other.wait() == "length"
        engine.close(TIMEOUT)
    assert (gone.finish_reason, len(gone.new_tokens)) == ("cancelled", 1)
    assert short.finish_reason == "length"
    assert [record.getMessage() for record in caplog.records] == [
        "a consumer of the engine failed: its sequence is cancelled: the event loop is closed"
    ] * 2


def test_closing_finishes_what_runs_within_the_timeout_and_cancels_the_rest():
    engine = thread(1, 5)
    first, gate = held_up(engine)
    gate.set()
    second = Request([2], 2)
    submit(engine, second, deadline=None)
    engine.close(TIMEOUT)
    assert (first.wait(), second.wait()) == ("length", "length")
    with pytest.raises(EngineClosed, match="accepts no more requests"):
        submit(engine, Request([1]))
    engine.close()

    runner = ModelRunner(MODEL, WIDTH)
    engine = EngineThread(runner, max_rows=1, max_waiting=5)
    first, gate = held_up(engine)
    with pytest.raises(AGI2Error, match="this runner is decoding another text"):
        EngineThread(runner, max_rows=1, max_waiting=5)
    second = Request([2], 2)
    submit(engine, second)
    closer = threading.Thread(target=engine.close)
    closer.start()
    while not engine._is_stopping:
        closer.join(0.001)
    gate.set()
    closer.join(TIMEOUT)
    assert (first.wait(), second.wait()) == ("cancelled", "cancelled")
    with runner.reserved():  # the runner is free again
        pass


def test_nobody_waits_for_a_thread_that_has_failed(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    engine = thread()
    first, gate = held_up(engine)
    second = Request([2])
    submit(engine, second)
    monkeypatch.setattr(engine, "_step", lambda: 1 / 0)
    gate.set()
    assert (first.wait(), second.wait()) == ("error", "error")
    assert second.sequence.error == "the engine has failed"
    engine._thread.join(TIMEOUT)
    with pytest.raises(EngineClosed):
        submit(engine, Request([1]))
    engine.close()


def test_rows_are_doubled_as_needed_and_freed_when_nothing_runs(monkeypatch):
    rows_seen = []
    runner = ModelRunner(MODEL, WIDTH)
    reserve = runner.reserve_rows
    monkeypatch.setattr(
        runner, "reserve_rows", lambda *arguments: (reserve(*arguments), rows_seen.append(rows()))
    )

    def rows() -> int:
        return runner.cache_bytes // cache_bytes(MODEL, POSITIONS)

    with closing(EngineThread(runner, max_rows=7, max_waiting=9)) as engine:
        requests = []
        for index in range(7):
            requests.append(Request([index], 40))
            gate = threading.Event()
            requests[-1].gate = gate
            submit(engine, requests[-1])
            assert requests[-1].begun.wait(TIMEOUT)
            requests[-1].gate = None
            gate.set()
        assert [each.wait() for each in requests] == ["length"] * 7
        engine.close(TIMEOUT)
    assert set(rows_seen) <= {1, 2, 4, 7}
    assert rows() == 1
