"""Splitting of a text into pieces that are encoded separately."""

import re
import unicodedata

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from src.tokenization import pieces as text_pieces
from src.tokenization.pieces import SpacelessSample, split_text
from src.tokenization.tokenizer_json import KNOWN_PATTERNS

quick = settings(deadline=None, max_examples=40)
# Text in which white space, letters, digits, marks, contractions and odd separators often meet.
DENSE = "a Zé1'!s\n\t\r\x1c\x1f\x85\xa0\u2028🐳鯨я。’-/\u0301ǅ٣"
dense_text = st.text(st.sampled_from(DENSE), max_size=60)


def pre_tokenizer_of(pattern):
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, last])


PRE_TOKENIZERS = [
    pre_tokenizers.ByteLevel(add_prefix_space=False),
    pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    *map(pre_tokenizer_of, KNOWN_PATTERNS),
]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@quick
@given(text=dense_text)
def test_a_cut_at_a_boundary_changes_no_word_of_any_known_pre_tokenizer(pre, text):
    def words(part):
        return [word for word, _ in pre.pre_tokenize_str(part)]

    pieces = list(split_text(text, run=len(text) + 1, size=1)) if text else []
    # Every boundary in turn, since a run without one is never longer than the text.
    ends = [found.start() for found in re.finditer(text_pieces._BOUNDARY, text)]
    assert all(words(text[:end]) + words(text[end:]) == words(text) for end in ends)
    assert "".join(pieces) == text


@quick
@given(text=dense_text, run=st.integers(1, 9), size=st.integers(1, 20))
def test_pieces_are_the_text_and_bounded(text, run, size):
    pieces = list(split_text(text, run, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size + run for piece in pieces)


@quick
@given(text=dense_text, before=dense_text, size=st.integers(1, 20))
def test_where_a_long_run_is_cut_depends_on_the_run_alone(text, before, size):
    run = 4

    def forced(whole):
        """Cuts that no boundary explains."""
        boundaries = {found.start() for found in re.finditer(text_pieces._BOUNDARY, whole)}
        ends, place = set(), 0
        for piece in split_text(whole, run, size):
            place += len(piece)
            ends.add(place)
        return ends - boundaries - {len(whole)}

    # A letter and a space begin a new run.
    first = len(before) + 1
    assert {end - first for end in forced(f"{before}x {text}") if end > first} == {
        end for end in forced(f" {text}") if end > 0
    }


def test_a_long_text_is_cut_before_spaces():
    pieces = list(split_text("one two three four five six", run=10, size=10))
    assert pieces == ["one two three", " four five", " six"]


@pytest.mark.parametrize("unit", ["a", " ", "a'", "ACGT", "鯨は海を泳ぐ", "\u0301", "aB3+", "a b"])
def test_cutting_looks_at_each_character_a_bounded_number_of_times(unit):
    """As many searches as a text of that length has runs, whatever it is made of."""
    text = unit * (40_000 // len(unit))
    pieces = list(split_text(text))
    assert "".join(pieces) == text
    assert len(pieces) <= len(text) / text_pieces.MAX_RUN + 1


def test_the_character_classes_are_of_one_category():
    everything = "".join(map(chr, range(0x110000)))
    for characters, categories in ((text_pieces._LETTERS, "L"), (text_pieces._MARKS, "PS")):
        found = re.findall(f"[{characters}]", everything)
        assert found
        assert {unicodedata.category(character)[0] for character in found} <= set(categories)


def test_text_without_spaces_is_sampled_evenly():
    sample = SpacelessSample(30_000)
    prose = "the old whale swam " * 9000
    chinese = [f"鯨{number}は海を泳ぐ。" * 20 for number in range(999)]
    for text in (prose, *chinese, prose):
        assert "".join(sample.take(text)) == (text if text is prose else "")
    assert sample.stretches == chinese[:: sample.rate]
    assert sample.characters == sum(map(len, chinese))
    assert 15_000 < sum(map(len, sample.stretches)) <= 30_000
    assert sample.rate in (8, 16)


def test_a_single_stretch_without_spaces_is_kept():
    sample = SpacelessSample(100)
    assert list(sample.take("ACGT" * 90)) == []
    assert sample.stretches == ["ACGT" * 90]
    assert sample.rate == 1
