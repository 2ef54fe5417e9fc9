"""Arrays over the documents of a corpus."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data import document_arrays
from src.data.document_arrays import compact, index_type, parts_by_value, ranks_of, sums_of


@pytest.mark.parametrize(
    ("largest", "dtype"), [(0, "int32"), (2**31 - 1, "int32"), (2**31, "int64")]
)
def test_integers_have_the_smallest_type_that_contains_them(largest, dtype):
    assert np.dtype(index_type(largest)) == dtype
    found = compact(np.array([largest, 1]))
    assert (found.dtype, found.tolist()) == (dtype, [largest, 1])
    assert len(compact(np.empty(0, np.int64))) == 0


@given(values=st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0, 2**32 - 1]), max_size=60))
def test_equal_values_are_in_one_part(values):
    values = np.array(values, np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_arrays, "_ROWS", 4)
        parts = list(parts_by_value(values))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(values)))
    assert all((np.diff(part) > 0).all() for part in parts)
    bounds = [values[part] for part in parts if len(part)]
    assert all(a.max() < b.min() for a, b in pairwise(bounds))


def test_ranks_and_sums():
    assert ranks_of(np.array([True, False, True]))[[0, 2]].tolist() == [0, 1]
    assert sums_of(np.array([1, 2, 4], np.int32), np.array([1, 0, 1]), 3).tolist() == [2, 5, 0]
