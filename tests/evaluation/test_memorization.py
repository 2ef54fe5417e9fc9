"""Overlap of generated text with the training text, compared with brute force."""

import random
import time
from pydoc_data.topics import topics
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.evaluation.memorization import SuffixAutomaton, known_words, longest_common_span
from tests.conftest import make_text

quick = settings(deadline=None, max_examples=40)


def brute_force(written, learned):
    spans = (written[i:j] for i in range(len(written)) for j in range(i, len(written) + 1))
    return max((len(span) for span in spans if span in learned), default=0)


@quick
@given(written=st.text("ab c", max_size=14), learned=st.text("ab c", max_size=20))
def test_longest_common_span_equals_brute_force(written, learned):
    span = longest_common_span(written, learned)
    assert span in written
    assert span in learned
    assert len(span) == brute_force(written, learned)


@quick
@given(text=st.text("ab c", max_size=14), other=st.text("ab c", max_size=20))
def test_a_suffix_automaton_finds_the_longest_common_substring(text, other):
    span = SuffixAutomaton(text).longest_in(other)
    assert span in text
    assert span in other
    assert len(span) == brute_force(text, other)


@quick
@given(st.data())
def test_long_spans_are_found_whatever_stands_around_them(data):
    letters = st.text("ab 𝔸é\udfff", min_size=4, max_size=40)
    planted, *around = (data.draw(letters) for _ in range(5))
    written = around[0] + planted + around[1]
    learned = around[2] + planted + around[3] + planted[1:]
    span = longest_common_span(written, learned)
    assert span in written
    assert span in learned
    assert len(span) == brute_force(written, learned) >= len(planted)


@quick
@given(data=st.data(), stretch=st.integers(1, 30))
def test_a_long_text_is_searched_in_stretches(data, stretch):
    written, learned = data.draw(st.text("ab", max_size=12)), data.draw(st.text("ab", max_size=90))
    with mock.patch("src.evaluation.memorization._MIN_CHUNK_CHARACTERS", stretch):
        span = longest_common_span(written, learned)
    assert span in written
    assert span in learned
    assert len(span) == brute_force(written, learned)


def test_a_text_of_few_letters_is_searched_as_fast_as_any():
    """Where every 8 letters are common; with a search from each letter this took minutes."""
    draw = random.Random(0)
    texts = {
        "two letters": "".join(draw.choices("ab", k=500_000)),
        "one letter": "a" * 500_000,
        "one word": "abcdefghij" * 50_000,
    }
    started = time.process_time()  # of this process alone, whatever else the machine does
    for learned in texts.values():
        span = learned[1000:2500]
        assert longest_common_span("c" + span + "c", learned) == span
    assert time.process_time() - started < 60


def test_equal_low_bytes_are_not_taken_for_equal_letters():
    # U+0461 to U+046A end in the bytes of "a" to "j".
    learned = "".join(chr(0x400 + ord(letter)) for letter in "abcdefghij") + " ab"
    assert longest_common_span("abcdefghij", learned) == "ab"


def test_known_words_are_counted_whatever_their_case():
    written = "The WHALE sang 42 naïve_songs"
    learned = "a whale; the naïve whale sang. The whale."
    assert known_words(written, learned) == 4 / 5
    assert longest_common_span(written, learned) == " naïve"


def test_a_copied_span_is_found_letter_for_letter():
    learned = "Call me Ishmael. Some years ago I went to sea."
    written = "he said: me Ishmael. Some y!"
    assert longest_common_span(written, learned) == " me Ishmael. Some y"


def zipf(alphabet, count, seed=1):
    """Letters as frequent as in a language: the n-th has a share of 1 / n."""
    weights = [1 / rank for rank in range(1, len(alphabet) + 1)]
    return "".join(random.Random(seed).choices(alphabet, weights, k=count))


def in_pieces(text, sizes, separator):
    draw, pieces = random.Random(2), []
    while text:
        size = draw.choice(sizes)
        pieces.append(text[:size])
        text = text[size:]
    return separator.join(pieces)


HAN = zipf([chr(0x4E00 + i) for i in range(3000)], 60_000)
BASES = "".join(random.Random(3).choices("acgt", k=60_000))
WITHOUT_WORDS = {
    "no text": "",
    "numbers": "12 3.5 % !" * 100,
    "Chinese, in clauses": in_pieces(HAN, range(4, 15), "，"),
    "Chinese, in verses": in_pieces(HAN, [5, 7], "\n"),
    "Chinese, in one piece": HAN,
    "DNA, in lines": in_pieces(BASES, [70], "\n"),
    "DNA, in tens": in_pieces(BASES, [10], " "),
    "DNA, in one piece": BASES,
}


@pytest.mark.parametrize("learned", WITHOUT_WORDS.values(), ids=list(WITHOUT_WORDS))
def test_where_words_do_not_recur_none_are_counted(learned):
    assert known_words(learned[:500] + " and more", learned) is None


def test_words_recur_in_a_short_text_of_a_language_with_spaces():
    topic = topics["if"]
    assert 0.9 < known_words(topic, topic) <= 1
    assert known_words("zyzzyva", topic) == 0


@pytest.mark.parametrize("written", ["", "12 !"])
def test_a_sample_without_words_has_no_share_of_known_ones(written):
    assert known_words(written, make_text()) is None
