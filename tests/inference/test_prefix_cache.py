"""A prefix cache against a list of everything that was inserted, in the order of its use."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.inference.prefix_cache import PrefixCache

BLOCK, BYTES = 2, 4 * 2  # of a block of BLOCK float32 numbers
TEXTS = st.lists(st.integers(0, 1), max_size=9)


def values(tokens) -> torch.Tensor:
    """What a row of these tokens has for the last block: it depends on all of them."""
    number = float(sum((place + 1) * (token + 1) for place, token in enumerate(tokens)))
    return torch.tensor([number, len(tokens)])


class Definition:
    """The blocks of all prefixes, the least recently used first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.prefixes: list[tuple[int, ...]] = []

    def use(self, tokens) -> list[tuple[int, ...]]:
        ends = range(BLOCK, len(tokens) + 1, BLOCK)
        found = []
        for end in ends:
            if tuple(tokens[:end]) not in self.prefixes:
                break
            found.append(tuple(tokens[:end]))
        self.touch(found)
        return found

    def touch(self, prefixes) -> None:
        for each in reversed(prefixes):
            self.prefixes.remove(each)
            self.prefixes.append(each)

    def insert(self, tokens) -> None:
        chain = self.use(tokens)
        for end in range(BLOCK * (len(chain) + 1), len(tokens) + 1, BLOCK):
            if len(chain) == self.capacity:
                break
            if len(self.prefixes) == self.capacity:
                del self.prefixes[0]
            chain.append(tuple(tokens[:end]))
            self.prefixes.append(chain[-1])
        self.touch(chain)


@given(
    actions=st.lists(st.tuples(st.booleans(), TEXTS), max_size=40),
    capacity=st.integers(0, 6),
    rest=st.integers(0, BYTES - 1),
)
@settings(max_examples=60)
def test_the_longest_stored_prefix_is_found_and_the_least_recently_used_evicted(
    actions, capacity, rest
):
    cache = PrefixCache(capacity * BYTES + rest, BLOCK)
    expected = Definition(capacity)
    for is_insert, tokens in actions:
        if is_insert:
            reads = []

            def read(start, stop, tokens=tokens, reads=reads):
                reads.append((start, stop))
                return values(tokens[:stop])

            known = len(expected.use(tokens))
            cache.insert(tokens, read)
            expected.insert(tokens)
            assert all(stop - start == BLOCK and start >= known * BLOCK for start, stop in reads)
        found = cache.match(tokens)
        prefixes = expected.use(tokens)
        assert len(found) == len(prefixes)
        for block, prefix in zip(found, prefixes, strict=True):
            assert torch.equal(block, values(prefix))
        assert len(cache) == len(expected.prefixes)
        assert cache.bytes == len(cache) * BYTES <= cache.max_bytes


def test_tokens_are_compared_and_not_only_their_hashes():
    """In Python -1 and -2 have the same hash."""
    assert hash((0, (-1,))) == hash((0, (-2,)))
    cache = PrefixCache(100, 1)
    cache.insert([-1], lambda *_: torch.ones(1))
    assert cache.match([-2]) == []
    assert len(cache.match([-1, 3])) == 1
