"""The entropy of a text: a trigram model next to a brute force, and texts whose order is known."""

from collections import Counter, defaultdict
from itertools import pairwise
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.builtin import python_docs
from src.train.entropy import text_entropy, trigram_bits


def brute_force_bits(train, held_out, size):
    """Interpolated Kneser-Ney of trigrams, by the formulas, in dictionaries."""
    tokens = [size, size, *train, *held_out]
    known = tokens[: 2 + len(train)]
    trigrams = Counter(zip(known, known[1:], known[2:], strict=False))
    bigrams = Counter(trigram[1:] for trigram in trigrams)
    unigrams = Counter(bigram[1:] for bigram in {*pairwise(known)})
    models = []
    for counts in (unigrams, bigrams, trigrams):
        once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
        totals, kinds = defaultdict(int), defaultdict(int)
        for ngram, count in counts.items():
            totals[ngram[:-1]] += count
            kinds[ngram[:-1]] += 1
        models.append((counts, totals, kinds, (once + 1) / (once + 2 * twice + 2)))
    bits = 0.0
    for at in range(len(known), len(tokens)):
        probability = 1 / size
        for n, (counts, totals, kinds, discount) in enumerate(models, 1):
            ngram = tuple(tokens[at - n + 1 : at + 1])
            if total := totals[ngram[:-1]]:
                rest = discount * kinds[ngram[:-1]] * probability
                probability = (max(counts[ngram] - discount, 0) + rest) / total
        bits -= log2(probability)
    return bits


TOKENS = st.lists(st.integers(0, 5), max_size=60)


@settings(deadline=None)
@given(TOKENS, TOKENS)
def test_the_bits_are_those_of_a_brute_force(train, held_out):
    found = trigram_bits(np.array(train, np.uint16), np.array(held_out, np.uint16), 6)
    # Some 10 roundings in float64 a token, and their sum.
    assert found == pytest.approx(brute_force_bits(train, held_out, 6), rel=1e-12, abs=1e-12)


def test_a_text_that_repeats_itself_is_easier():
    easy = text_entropy(["the whale swam. " * 500], 0)
    hard = text_entropy(["".join(map(chr, np.random.default_rng(0).integers(32, 127, 8000)))], 0)
    assert easy < 0.1 < 6 < hard < 8


def test_english_is_between_and_its_held_out_documents_depend_on_the_seed():
    documents = list(python_docs())
    found = {text_entropy(documents, seed) for seed in (0, 1, 0)}
    assert len(found) == 2
    assert all(1.4 < bits < 2.2 for bits in found)


def test_of_a_text_too_short_to_hold_a_part_out_there_is_an_estimate():
    assert 0 < text_entropy(["a"], 0) < 9
    assert text_entropy(["", "\ud800"], 0) > 0


def test_nothing_is_logged_as_the_run_will_log_it(caplog):
    text_entropy(["the whale swam. " * 50], 0)
    assert not caplog.records
