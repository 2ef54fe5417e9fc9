"""Best-fit decreasing: as few bins, as full, as an item-by-item implementation makes them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.packing import best_fit


def spaces_of_each_item_alone(lengths, capacity):
    """The space that is left in each bin, if items are placed one after the other."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else capacity) - length)
    return sorted(spaces)


@st.composite
def items(draw):
    capacity = draw(st.integers(1, 30))
    return draw(st.lists(st.integers(1, capacity), max_size=80)), capacity


@given(items())
def test_items_are_packed_by_best_fit_decreasing(drawn):
    lengths, capacity = drawn
    order, bounds = best_fit(np.array(lengths, np.int32), capacity)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    bins = [order[a:b].tolist() for a, b in pairwise(bounds)]
    assert sum(map(len, bins)) == len(lengths)
    spaces = [capacity - sum(lengths[item] for item in each) for each in bins]
    assert sorted(spaces) == spaces_of_each_item_alone(lengths, capacity)
    assert all(each == sorted(each) for each in bins)


@pytest.mark.parametrize("count", [10**6])
def test_a_million_items_are_packed_almost_without_space(count):
    lengths = np.random.default_rng(1).integers(1, 1025, count)
    order, bounds = best_fit(lengths, 1024)
    used = np.add.reduceat(lengths[order], bounds[:-1])
    assert used.max() <= 1024
    assert len(used) <= 1.001 * lengths.sum() / 1024
