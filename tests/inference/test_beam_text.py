"""Beam search from text to text."""

import math

import pytest

from src.errors import AGI2Error
from src.generation import (
    generate_beam_text,
    generate_beam_texts,
    generate_text,
)
from src.inference.beam_search import beam_search
from src.tokenizer import BPETokenizer
from tests.tiny_models import random_model

VOCABULARY = 290


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = BPETokenizer(VOCABULARY)
    tokenizer.fit(["The cat sat. Ο γάτος κάθισε. 猫は座った。", " the" * 20])
    return tokenizer


@pytest.fixture(scope="module")
def writer():
    """A model of random weights over the tokenizer's vocabulary."""
    return random_model(vocab_size=VOCABULARY, max_seq_len=64)


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_greedy(seed, tokenizer):
    writer = random_model(seed, vocab_size=VOCABULARY)
    assert generate_beam_text(writer, "The", 1, 12, tokenizer=tokenizer) == generate_text(
        writer, "The", 12, 0, tokenizer=tokenizer
    )


def test_several_results_are_the_hypotheses_as_text(tokenizer, writer):
    found = generate_beam_texts(writer, "The", 4, 6, tokenizer=tokenizer, results=3)
    expected = beam_search(writer, tokenizer.encode("The"), 4, 6, end_token=tokenizer.end_of_text)
    assert [each.score for each in found] == [each.score for each in expected[:3]]
    assert [each.text for each in found] == [tokenizer.decode(e.tokens) for e in expected[:3]]
    best = generate_beam_text(writer, "The", 4, 6, tokenizer=tokenizer)
    assert best == "The" + found[0].text


def test_the_options_of_a_search_reach_it_from_text(tokenizer, writer):
    options = {"early_stopping": True, "groups": 2, "diversity_penalty": 3.0}
    found = generate_beam_texts(writer, "The", 4, 6, 0.5, tokenizer, results=4, **options)
    expected = beam_search(
        writer, tokenizer.encode("The"), 4, 6, 0.5, end_token=tokenizer.end_of_text, **options
    )
    assert [each.score for each in found] == [each.score for each in expected]
    plain = generate_beam_texts(writer, "The", 4, 6, 0.5, tokenizer, results=4)
    assert [each.text for each in found] != [each.text for each in plain]


def test_no_result_shows_a_stop_string(tokenizer, writer):
    free = generate_beam_texts(writer, "The", 4, 8, tokenizer=tokenizer, results=4)
    stop = free[0].text[2]
    found = generate_beam_texts(writer, "The", 4, 8, tokenizer=tokenizer, results=4, stop=stop)
    assert len(found) == 4
    assert not any(stop in each.text for each in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, not 0"),
        ({"beam_size": 291}, "beam_size 291 is above the vocabulary of 290 tokens: lower it"),
        ({"max_length": -1}, "max_length must be at least 1, not -1"),
        ({"length_penalty": 1e4}, "length_penalty must be from -10 to 10, not 10000.0"),
        ({"length_penalty": math.nan}, "length_penalty must be from -10 to 10, not nan"),
        ({"repetition_penalty": -2}, "repetition_penalty must be from 0.0001 to 10000, not -2"),
        ({"groups": 0}, "beam_groups must be at least 1, not 0"),
        ({"groups": 3}, "beam_groups 3 does not divide beam_size 5"),
        ({"diversity_penalty": -1}, "diversity_penalty must be from 0 to 1000000, not -1"),
        ({"diversity_penalty": math.nan}, "diversity_penalty must be from 0 to 1000000, not nan"),
        (
            {"early_stopping": "always"},
            "early_stopping must be True or False or 'never', not 'always'",
        ),
        ({"results": 0}, "beam_results must be at least 1, not 0"),
        ({"results": 6}, "beam_results 6 is above beam_size 5: lower the one or raise the other"),
        (
            {"tokenizer": None},
            "a tokenizer is needed: pass the one the model was trained with",
        ),
    ],
)
def test_an_option_out_of_its_range_is_one_clear_line(options, message, tokenizer, writer):
    with pytest.raises(AGI2Error) as caught:
        generate_beam_texts(writer, "a", **{"tokenizer": tokenizer, **options})
    assert str(caught.value) == message
