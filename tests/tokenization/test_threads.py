"""Results of threads stay in order."""

import threading

import pytest

from src.tokenization.threads import BackgroundCalls, map_in_order, map_in_threads


@pytest.mark.parametrize("threads", [1, 3])
def test_results_of_threads_stay_in_order_and_errors_arrive(threads):
    for apply in (map_in_order, map_in_threads):
        assert list(apply(str, range(50), threads)) == list(map(str, range(50)))
        assert list(apply(str, [7], threads)) == ["7"]
        assert list(apply(str, [], threads)) == []
        with pytest.raises(ZeroDivisionError):
            list(apply(lambda x: 1 // x, [1, 2, 0, 3], threads))
    (thread,) = set(map_in_threads(lambda _: threading.get_ident(), range(9), 1))
    assert thread != threading.get_ident()


def test_background_calls_are_made_in_order():
    made, threads = [], set()

    def call(item):
        threads.add(threading.get_ident())
        made.append(item)

    calls = BackgroundCalls(call)
    for item in range(50):
        calls.submit(item)
    calls.finish()
    assert made == list(range(50))
    assert len(threads - {threading.get_ident()}) == len(threads) == 1


@pytest.mark.parametrize("count", [1, 9])
def test_an_error_of_a_background_call_arrives(count):
    def fail():
        calls = BackgroundCalls(lambda item: 1 // item)
        for _ in range(count):
            calls.submit(0)
        calls.finish()

    with pytest.raises(ZeroDivisionError):
        fail()
