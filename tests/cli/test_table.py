"""Tables: on a terminal of any width, and in a pipe."""

import io
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.cli.table import print_table

HOSTILE = "a\x1b[31mb\x07\r\x9bc\u202ed\n\te"


HEAD = ["run", "parameters", "steps", "val loss", "bits/byte", "checkpoints", "size", "date"]


ROW = ["my_novel", "124,439,808", "211,000", "3.1234", "1.234", "200000, 211000", "1.5 GB"]


ROWS = [[*ROW, "2026-11-26 13:51"], ["other", *["–"] * 7]]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, width, head, rows, optional=()):
    """What a terminal of a width shows of a table, and what is left out."""
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    left_out = print_table(head, rows, optional)
    monkeypatch.undo()
    return re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()), left_out


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
def test_no_word_of_a_table_is_broken(width, monkeypatch):
    for optional in ([], ["checkpoints", "parameters", "size", "date", "steps"]):
        text, left_out = shown(monkeypatch, width, HEAD, ROWS, optional)
        words = {word for row in [HEAD[1:], *ROWS] for cell in row for word in cell.split()}
        gone = {
            word
            for row in [HEAD, *ROWS]
            for name, cell in zip(HEAD, row, strict=True)
            if name in left_out
            for word in cell.split()
        }
        for word in words - gone:
            assert word in text
        assert max(map(len, text.splitlines())) <= width


def test_only_so_many_columns_are_left_out_as_must_be(monkeypatch):
    optional = ["checkpoints", "parameters", "size"]
    assert shown(monkeypatch, 200, HEAD, ROWS, optional)[1] == []
    assert shown(monkeypatch, 94, HEAD, ROWS, optional)[1] == []
    text, left_out = shown(monkeypatch, 93, HEAD, ROWS, optional)
    assert left_out == ["checkpoints"]
    assert "2026-11-26 13:51" in text
    assert max(map(len, text.splitlines())) <= 93
    text, left_out = shown(monkeypatch, 60, HEAD, ROWS, optional)
    assert left_out == optional
    assert "my_novel" in text


def test_long_cells_are_wrapped_between_words(monkeypatch):
    rows = [["sources", "one.txt two.txt " * 12, "three.txt"]]
    text, _ = shown(monkeypatch, 80, ["key", "a", "b"], rows)
    assert text.count("one.txt") == text.count("two.txt") == 12
    assert len(text.splitlines()) > 4
    assert max(map(len, text.splitlines())) <= 80


def test_wide_characters_stand_in_line(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(["run", "steps"], [["日本", "1"], ["abcd", "2"]])
    assert capsys.readouterr().out == "run   steps\n日本  1\nabcd  2\n"


@given(st.lists(st.lists(st.text(max_size=12), min_size=3, max_size=3), max_size=4))
@settings(max_examples=20, deadline=None)
def test_a_table_holds_no_control_character_whatever_its_cells(rows):
    for width in (20, 80):
        with pytest.MonkeyPatch.context() as monkeypatch:
            text, _ = shown(monkeypatch, width, ["a", "[red]", "\x1b"], rows)
        assert "[red]" in text or (width == 20 and not rows)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e]", text)


def test_a_pipe_gets_every_column_unless_its_width_is_given(monkeypatch):
    monkeypatch.setattr(sys, "stdout", pipe := io.StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert print_table(HEAD, ROWS, ["checkpoints", "parameters"]) == []
    assert max(map(len, pipe.getvalue().splitlines())) > 80
    monkeypatch.setattr(sys, "stdout", pipe := io.StringIO())
    monkeypatch.setenv("COLUMNS", "80")
    assert print_table(HEAD, ROWS, ["checkpoints", "parameters"]) == ["checkpoints"]
    assert max(map(len, pipe.getvalue().splitlines())) <= 80
