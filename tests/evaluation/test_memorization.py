"""Overlap of generated text with the training text, compared with brute force."""

import random
import time
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from src.evaluation.memorization import SuffixAutomaton, longest_common_span, measure_overlap

quick = settings(deadline=None, max_examples=60)


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


def test_originality_counts_known_words_whatever_their_case():
    result = measure_overlap("The WHALE sang 42 naïve_songs", "a whale; the naïve whale sang.")
    assert result.known_words == 4 / 5
    assert result.longest_copy == " naïve"


def test_a_copied_span_is_found_letter_for_letter():
    learned = "Call me Ishmael. Some years ago I went to sea."
    written = "he said: me Ishmael. Some y!"
    assert measure_overlap(written, learned).longest_copy == " me Ishmael. Some y"


def test_a_text_without_words_knows_none():
    assert measure_overlap("", "some text").known_words == 0
    assert measure_overlap("12 !", "some text").known_words == 0
