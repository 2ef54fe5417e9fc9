"""Figures about a text and its tokens."""

import numpy as np
import pytest

from src.tokenization import statistics
from src.tokenization.statistics import longest_tokens, measure
from src.tokenizer import BasicTokenizer, BPETokenizer


@pytest.mark.parametrize("batch", [1, 10**6])
def test_figures_are_those_of_all_texts_together(batch, monkeypatch):
    monkeypatch.setattr(statistics, "_BATCH_CHARACTERS", batch)
    bpe, basic = BPETokenizer(300), BasicTokenizer("whale ")
    bpe.fit("the old whale")
    texts = ["the whale é", "", "\ud800 whale"]
    for tokenizer, found in zip((bpe, basic), measure([bpe, basic], iter(texts)), strict=True):
        ids = [id for text in texts for id in tokenizer.encode(text)]
        assert found.counts.tolist() == np.bincount(ids, minlength=len(tokenizer)).tolist()
        assert (found.bytes, found.words, found.tokens) == (12 + 7, 5, len(ids))
        assert found.bytes_per_token == 19 / len(ids)
        assert found.tokens_per_word == len(ids) / 5
        special = set(tokenizer.special_tokens.values())
        assert found.unused == [
            id for id in range(len(tokenizer)) if id not in ids and id not in special
        ]


def test_no_text_has_no_tokens():
    [found] = measure([BasicTokenizer("ab")], [])
    assert (found.bytes, found.tokens, found.bytes_per_token, found.tokens_per_word) == (0, 0, 0, 0)
    assert found.unused == [2, 3]


def test_the_longest_tokens_come_first():
    tokenizer = BasicTokenizer(["a", "whale", "é", "sea"])
    assert longest_tokens(tokenizer, 3) == [3, 5, 4]
