"""Apply a function in threads, for functions that release the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

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
