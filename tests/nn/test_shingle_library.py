"""The library that hashes shingles. What it computes: `tests/data/test_dedup.py`."""

from src.nn import shingle_library


def test_without_a_compiler_there_is_no_library(tmp_path):
    assert shingle_library.load(tmp_path) is None
