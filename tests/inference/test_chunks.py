"""Chunks divided into forward passes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.inference import chunks as module
from src.inference.chunks import Chunk, grouped, padded, record_logits
from src.nn.kv_cache import KVCache

ROWS, CAPACITY = 8, 64


@given(sizes=st.dictionaries(st.integers(0, ROWS - 1), st.integers(1, 40), min_size=1))
def test_each_chunk_is_in_one_forward_pass_with_little_padding(sizes):
    cache = KVCache(1, ROWS, 1, CAPACITY, 1)
    chunks = [Chunk(row, 0, [row] * size) for row, size in sorted(sizes.items())]
    groups = list(grouped(chunks, cache))
    assert sorted(chunk.row for group in groups for chunk in group) == sorted(sizes)
    for group in groups:
        rows, width = [chunk.row for chunk in group], max(len(chunk.tokens) for chunk in group)
        assert rows == sorted(rows)
        padding = (rows[-1] - rows[0] + 1) * width - sum(len(chunk.tokens) for chunk in group)
        assert width == 1 or padding <= module.PADDING


@pytest.mark.parametrize(
    ("chunks", "first", "stop", "width", "expected"),
    [
        ([Chunk(2, 0, [5]), Chunk(3, 4, [6])], 2, 4, 1, [[5], [6]]),
        ([Chunk(3, 4, [6])], 2, 5, 1, [[0], [6], [0]]),
        ([Chunk(0, 0, [5]), Chunk(1, 0, [6, 7])], 0, 2, 2, [[5, 0], [6, 7]]),
    ],
)
def test_rows_are_padded_on_the_right_with_zeros(chunks, first, stop, width, expected):
    assert padded(chunks, first, stop, width) == expected


def test_logits_are_recorded_in_parts_with_their_places(monkeypatch):
    monkeypatch.setattr(module, "RECORDED_TOKENS", 2)
    found = []
    chunks = [
        Chunk(1, 7, [1, 2, 3], lambda place, logits: found.append((place, logits.tolist()))),
        Chunk(2, 0, [4]),
    ]
    hidden = torch.arange(6.0).view(2, 3, 1)
    record_logits(chunks, hidden, 1, lambda x: x * 10)
    assert found == [(7, [[0.0], [10.0]]), (9, [[20.0]])]
