"""Error messages: one printable line per problem, for any input."""

import pickle
import re

from hypothesis import given
from hypothesis import strategies as st

from src.errors import MAX_LINE_LENGTH, AGI2Error, one_line, printable, safe_repr

# Surrogates, too: Python makes them of file names that are not UTF-8.
ANY_TEXT = st.text(st.characters())
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@given(ANY_TEXT | ANY_TEXT.map(lambda text: 200 * text))
def test_a_line_of_any_text_is_short_and_printable(text):
    line = one_line(text)
    assert len(line) <= MAX_LINE_LENGTH
    assert not CONTROLS.search(line)
    assert len(line.splitlines()) <= 1
    line.encode()  # no half characters
    if not CONTROLS.search(text) and len(text) <= MAX_LINE_LENGTH:
        assert line == text


@given(ANY_TEXT, ANY_TEXT)
def test_escapes_can_be_read_back(before, after):
    text = f"{before}\x1b]0;title\x07\u202e{after}"
    shown = printable(text.replace("\\", ""))
    assert not CONTROLS.search(shown)
    assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == text.replace(
        "\\", ""
    )


def test_what_is_kept_stays_as_it_is():
    assert printable("a\tb\nc\x1b[2J\r", keep="\n\t") == "a\tb\nc\\x1b[2J\\r"


def test_a_long_message_keeps_its_beginning_and_its_end():
    message = f"config.toml: {'x' * 10**6}: set it to a number"
    assert one_line(message).startswith("config.toml: xxx")
    assert one_line(message).endswith("xxx: set it to a number")


def test_an_error_has_a_line_for_each_problem_and_survives_pickling():
    error = AGI2Error("first\nsecond", "third\x1b[31m")
    assert str(error) == "first\\nsecond\nthird\\x1b[31m"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_value_is_shown_in_one_line_even_where_python_cannot():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert safe_repr({"a": 1}) == "{'a': 1}"
    assert safe_repr(10**5000) == "a value of type int that is too large to show"
    assert safe_repr(deep) == "a value of type list that is too large to show"
    assert len(safe_repr("x" * 10**6)) == 300


def test_a_value_whose_repr_fails_is_named_by_its_type():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert safe_repr(Broken()) == "a value of type Broken that cannot be shown"
