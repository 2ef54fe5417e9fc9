"""Tables at any width, and text of others that a terminal must not follow."""

import io
import os
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.console import print_line, print_table, print_text

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


def test_wide_characters_stand_in_line(capsys):
    print_table(["run", "steps"], [["日本", "1"], ["abcd", "2"]])
    assert capsys.readouterr().out == "run   steps\n日本  1\nabcd  2\n"


@given(st.lists(st.lists(st.text(max_size=12), min_size=3, max_size=3), max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_table_holds_no_control_character_whatever_its_cells(rows):
    for width in (20, 80):
        with pytest.MonkeyPatch.context() as monkeypatch:
            text, _ = shown(monkeypatch, width, ["a", "[red]", "\x1b"], rows)
        assert "[red]" in text or (width == 20 and not rows)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e]", text)


def test_generated_text_is_escaped_in_a_terminal_and_raw_elsewhere(monkeypatch, capfdbinary):
    print_text(HOSTILE)
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == HOSTILE.encode() + b"\n"
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    print_text(HOSTILE)
    print_text("piece", end="")
    assert screen.getvalue() == "a\\x1b[31mb\\x07\\r\\x9bc\\u202ed\n\te\npiece"


def test_a_line_of_ours_is_always_escaped(capsys):
    print_line("disk: free in \x1b[2J\nnext")
    assert capsys.readouterr().out == "disk: free in \\x1b[2J\nnext\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_model_that_recites_escape_codes_cannot_reach_a_real_terminal(tmp_path):
    pexpect = pytest.importorskip("pexpect")
    program = """
import sys
from tests.tiny_models import reciting_model
from src.console import print_text
from src.generation import generate_text, stream_text, Choice
from src.token_view import print_choices
from src.tokenizer import BPETokenizer

tokenizer = BPETokenizer(257)
tokenizer.fit([""], verbose=False)
script = tokenizer.encode("\\x1b]0;owned\\x07\\x9b2J\\r\\u202e")
model = reciting_model(257, [*script, *script])
for piece in stream_text(model, "A", len(script), tokenizer=tokenizer, temperature=0):
    print_text(piece, end="")
print_choices("\\x1b[31m", [Choice(65, "\\x1b[32mx\\x07", 0.5, [])], tokenizer)
print("THE END")
"""
    terminal = pexpect.spawn(
        sys.executable,
        ["-c", program],
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
        timeout=240,
    )
    try:
        terminal.expect("THE END")
        seen = terminal.before
    finally:
        terminal.close(force=True)
    assert r"\x1b]0;owned\x07" in seen
    assert r"\x1b[31m" in seen
    assert not re.search(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", seen.replace("\x1b[0m", "")
    )
