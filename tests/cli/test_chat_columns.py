import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from src.cli import chat_columns
from src.cli.chat_columns import _Column, column_width, print_columns


def wrapped(pieces, width):
    column = _Column(width)
    for piece in pieces:
        column.push(piece)
    column.finish()
    return column.lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("one two", ["one two"]),
        ("one two three four", ["one two", "three four"]),
        ("one two three", ["one two", "three"]),
        ("0123456789ab", ["0123456789", "ab"]),
        ("a 0123456789ab", ["a", "0123456789", "ab"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("日本語日本語", ["日本語日本", "語"]),
        ("0123456789 x", ["0123456789", "x"]),
        ("\x1b[2J", ["\\x1b[2J"]),
        ("a\tb", ["a    b"]),
    ],
)
def test_a_text_is_wrapped_at_words(text, lines):
    assert wrapped([text], 10) == lines


@given(st.text("ab \n日😀", max_size=60), st.integers(2, 9))
def test_wrapping_loses_only_white_space_and_pieces_do_not_matter(text, width):
    lines = wrapped(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(cell_len(line) <= width for line in lines)


def test_rows_are_printed_as_soon_as_they_are_complete(capsys):
    shown = []

    def left():
        yield "one two three "
        shown.append(capsys.readouterr().out)
        yield "four five"

    def right():
        yield "alpha beta gamma"
        shown.append(capsys.readouterr().out)

    print_columns(["a", "b"], [left(), right()], 11)
    assert shown[0] == "--- a ---   | --- b ---\none two     | alpha beta\n"
    assert shown[1] == ""
    assert capsys.readouterr().out == "three four  | gamma\nfive        | \n"


def test_a_row_waits_for_the_slower_column(capsys):
    shown = []

    def left():
        yield "one two three "
        shown.append(capsys.readouterr().out)

    def right():
        yield "al"
        yield "pha beta gamma"

    print_columns(["a", "b"], [left(), right()], 11)
    assert shown == ["--- a ---   | --- b ---\n"]
    assert capsys.readouterr().out == "one two     | alpha beta\nthree       | gamma\n"


def test_what_an_interrupt_leaves_is_printed(capsys):
    def stopped():
        yield "begun"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        print_columns(["a", "b"], [stopped(), iter(["other"])], 11)
    assert capsys.readouterr().out == "--- a ---   | --- b ---\nbegun       | other\n"


@pytest.mark.parametrize(
    ("is_terminal", "term", "columns", "expected"),
    [
        (True, "xterm", 140, 68),
        (True, "xterm", 83, 40),
        (True, "xterm", 82, None),
        (True, "xterm", 80, None),
        (True, "dumb", 140, None),
        (False, "xterm", 140, None),
    ],
)
def test_there_are_columns_where_they_fit(is_terminal, term, columns, expected, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert chat_columns.MIN_COLUMN == 40
    assert column_width(2) == expected
