"""Apply a function in threads, for functions that release the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Apply a function in several threads; yield the results in order, few of them waiting.

    With one thread, or for one item, the function is called in this thread.
    """
    items = iter(items)
    head = list(islice(items, 2))
    if threads == 1 or len(head) < 2:
        return map(function, chain(head, items))
    return map_in_threads(function, chain(head, items), threads)


def map_in_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Apply a function in one other thread or several, as `map_in_order` does."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[R]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class BackgroundCalls(Generic[T]):
    """Calls a function with one item after the other, in order, in one other thread.

    Args:
        function: the function; its results are dropped.
        waiting: maximum items that wait.
    """

    def __init__(self, function: Callable[[T], object], waiting: int = 2) -> None:
        self._function, self._waiting = function, waiting
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[object]] = deque()

    def submit(self, item: T) -> None:
        """Call the function with an item later; raise what an earlier call has raised."""
        self._pending.append(self._pool.submit(self._function, item))
        while len(self._pending) > self._waiting:
            self._pending.popleft().result()

    def finish(self) -> None:
        """Return when all calls have been made; raise what one of them has raised."""
        while self._pending:
            self._pending.popleft().result()
        self._pool.shutdown()
