"""Which documents are held out, and of which only the end."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.held_out import choose_or_cut
from src.data.splits import split_documents
from tests.data.test_splits import words


@settings(deadline=None, max_examples=25)
@given(
    books=st.integers(1, 3),
    notes=st.integers(20, 60),
    size=st.integers(20, 200),
    seed=st.integers(0),
)
def test_next_to_long_documents_short_ones_are_not_all_held_out(books, notes, size, seed):
    draw = random.Random(seed)
    long = [words(draw, 40 * size) for _ in range(books)]
    short = [words(draw, size // 10) for _ in range(notes)]
    train, held_out = split_documents([*short, *long], 0.1, seed % 1000)
    of_notes = [len(set(side) & set(short)) for side in (train, held_out)]
    assert sum(of_notes) == notes
    assert 0 < of_notes[1] <= notes / 2
    for text in long:
        assert any(text == a + b for a in train for b in held_out) or text in [*train, *held_out]
    assert sum(map(len, held_out)) == pytest.approx(sum(map(len, [*short, *long])) / 10, rel=0.5)


def test_a_long_text_is_cut_unless_others_are_related_to_it():
    lengths = np.array([1000, 900, *[2] * 50])
    alone = np.arange(52)
    chosen, is_cut = choose_or_cut(alone, lengths, 0.1, 0)
    assert is_cut.tolist() == [True, True, *[False] * 50]
    assert 2 <= chosen.sum() <= 8
    related = np.array([0, 0, *range(2, 52)])
    chosen, is_cut = choose_or_cut(related, lengths, 0.1, 0)
    assert not is_cut.any()
    assert 2 <= chosen.sum() <= 8
    chosen, is_cut = choose_or_cut(alone, np.full(52, 9), 0.1, 0)
    assert not is_cut.any()
    assert 3 <= chosen.sum() <= 8
