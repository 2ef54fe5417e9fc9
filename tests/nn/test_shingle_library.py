"""The library that hashes documents and shingles. What it computes: `tests/data/test_dedup.py`."""

import numpy as np
import pytest

from src.nn import shingle_library
from src.nn.shingle_library import DocumentScanner


def test_without_a_compiler_there_is_no_library(tmp_path):
    assert shingle_library.load(tmp_path) is None


@pytest.mark.skipif(shingle_library.LIBRARY is None, reason="no C compiler at installation")
def test_what_is_out_of_bounds_is_an_error_not_a_crash():
    scanner, counts = DocumentScanner(np.ones(9)), np.array([2, 1])
    minima = np.zeros((2, 128), np.uint64)
    with pytest.raises(ValueError, match="ascending"):
        scanner.scan(b"abc", counts, np.array([2, 3]), 9, None)
    with pytest.raises(ValueError, match="ascending"):
        scanner.scan(b"abc", counts, np.array([1, 0]), 9, None)
    with pytest.raises(ValueError, match="more documents than rows"):
        scanner.scan(b"abc", counts, np.array([1, 2]), 9, minima)
    with pytest.raises(ValueError, match="negative"):
        scanner.scan(b"abc", np.array([4, -1]), np.array([1, 2]), 9, None)
    with pytest.raises(TypeError, match="contiguous elements"):
        scanner.scan(b"abc", counts[:1], np.array([1, 1]), 9, None)
    # Fewer bytes than characters, and bytes that are not UTF-8.
    for text in (b"a", b"", b"\xf0", b"\xff\xff\xff\xff\xff"):
        sizes, _, found = scanner.scan(text, counts, np.array([1, 1]), 9, minima)
        assert sizes.sum() <= len(text)
        assert all(len(each) == 0 for each in found)
