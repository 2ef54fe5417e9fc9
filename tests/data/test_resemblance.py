"""Resemblances: those of the sets of shingles, a few documents at a time, in the order of pairs."""

import random

import numpy as np
import pytest

from src.data import resemblance as module
from src.data.resemblance import resemblances
from tests.data.test_copies import edited, resemblance, words


@pytest.mark.parametrize("limit", [1, 3000, 2**18])
def test_resemblances_are_those_of_the_sets_of_shingles(monkeypatch, limit):
    monkeypatch.setattr(module, "MAX_COMPARED", limit)
    draw = random.Random(0)
    texts = [words(draw, draw.choice([0, 3, 60, 200])) for _ in range(12)]
    texts += [edited(draw, text, 0.2) for text in texts]
    texts += ["über Köln " * 30, "日本語 " * 40, "ab" * 3000]
    sizes = np.array([len(text.encode()) for text in texts])
    a, b = np.triu_indices(len(texts), 1)
    read = []

    def texts_of(indices):
        read.append(sum(min(limit, int(sizes[index])) for index in indices))
        return [texts[index] if sizes[index] < 5000 else None for index in indices.tolist()]

    found = resemblances(texts_of, sizes, a, b)
    long = len(texts) - 1
    for one, other, value in zip(a.tolist(), b.tolist(), found.tolist(), strict=True):
        if other == long:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(resemblance(texts[one], texts[other]))
    assert max(read) <= 2 * limit
    assert len(resemblances(texts_of, sizes, a[:0], b[:0])) == 0
