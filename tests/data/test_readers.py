import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.readers import read_file
from src.data.text_files import Unreadable
from src.errors import AGI2Error
from tests.data.test_gutenberg import framed


def read(path, content, text_field="text"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_file(path, text_field)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ('1,"abc\n2,def\n3,ghi\n', "2: not CSV: unexpected end of data; is a quote not closed"),
        ('1,"abc\n2,"def"\n', "2: not CSV: ',' expected after '\"'"),
        ("1,Hello, world\n", "2: the row has 3 fields, the first row 2: put fields with ','"),
        ("1,a\n2\n", "3: the row has 1 field, the first row 2"),
    ],
)
def test_a_broken_csv_is_refused_with_the_line(tmp_path, rows, problem):
    with pytest.raises(Unreadable, match=f"a.csv:{problem}"):
        read(tmp_path / "a.csv", "id,text\n" + rows)


@pytest.mark.parametrize("content", ["\n\nid,text\n1,a\n", "\n"])
def test_a_csv_whose_first_line_is_empty_says_so(tmp_path, content):
    with pytest.raises(Unreadable, match=r"(:1: the first line is empty|contains only white)"):
        read(tmp_path / "a.csv", content)


def test_a_field_that_has_swallowed_rows_is_told_of_once(tmp_path, caplog):
    caplog.set_level("WARNING", logger="agi2")
    rows = '1,"abc\n2,def\n3,ghi"\n4,x\n5,"abc\n6,def\n7,ghi"\n'
    assert len(read(tmp_path / "a.csv", "id,text\n" + rows).documents) == 3
    (line,) = caplog.messages
    assert line.endswith("a.csv:2: a field has lines like rows: is a quote missing?")


@pytest.mark.parametrize("content", ['id,text\n1,"a\nb\nc"\n2,d\n', 'text\n"a\nb\nc"\n'])
def test_a_field_of_several_lines_is_no_mistake(tmp_path, content, caplog):
    read(tmp_path / "a.csv", content)
    assert not caplog.messages


def test_all_formats_have_the_same_line_ends(tmp_path):
    text = "a\r\nb\rc\nd"
    for name, content in {
        "a.txt": text,
        "a.csv": f'text\n"{text}"\n',
        "a.jsonl": json.dumps({"text": text}),
    }.items():
        assert read(tmp_path / name, content).documents == ["a\nb\nc\nd"]


def test_a_column_that_is_there_twice_is_refused_unless_it_is_another(tmp_path):
    with pytest.raises(Unreadable, match="the column 'text' occurs more than once"):
        read(tmp_path / "a.csv", "text,text\na,b\n")
    assert read(tmp_path / "a.csv", "id,text,id\n1,b,2\n").documents == ["b"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_the_one_that_finds_the_column(tmp_path, separator):
    content = f"\ufeffid{separator} text \r\n1{separator}a, b; c\t|d\r\n"
    content = content.replace("a, b; c\t|d", '"a, b; c\t|d"')
    assert read(tmp_path / "a.csv", content).documents == ["a, b; c\t|d"]
    with pytest.raises(Unreadable, match=f"no column 'body' among {'id, text'}; set text_field"):
        read(tmp_path / "a.csv", content, "body")


def test_a_column_by_itself_may_hold_other_separators_but_no_bare_comma(tmp_path):
    assert read(tmp_path / "a.csv", "text\na; b|c\td\n").documents == ["a; b|c\td"]
    with pytest.raises(Unreadable, match=r"a\.csv:2: the row has 2 fields"):
        read(tmp_path / "a.csv", "text\nCall me Ishmael, please.\n")


cells = st.text(st.sampled_from('ab ,;|\t"\n鯨'), max_size=12)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1), separator=st.sampled_from(",;\t|"))
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory, rows, separator):
    written = io.StringIO()
    csv.writer(written, delimiter=separator).writerows([("id", "text"), *rows])
    expected = [text for _, text in rows if text.strip()]
    path = tmp_path_factory.getbasetemp() / "written.csv"
    if not expected:
        with pytest.raises(AGI2Error, match="contains no text"):
            read(path, written.getvalue())
        return
    reading = read(path, written.getvalue())
    assert reading.documents == expected
    assert bool(reading.skipped) == (len(expected) < len(rows))


@settings(deadline=None)
@given(rows=st.lists(cells, min_size=1, max_size=8), cut=st.integers(0, 200))
def test_a_csv_that_lost_a_quote_is_never_fewer_documents_in_silence(tmp_path_factory, rows, cut):
    rows = [f"{number} {text}" for number, text in enumerate(rows)]
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([("id", "text")])
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows((n, text) for n, text in enumerate(rows))
    content = written.getvalue()
    quotes = [place for place, character in enumerate(content) if character == '"'][4:]
    place = quotes[cut % len(quotes)]
    path = tmp_path_factory.getbasetemp() / "lost.csv"
    try:
        documents = read(path, content[:place] + content[place + 1 :]).documents
    except AGI2Error:
        return
    assert len(documents) >= len(rows)


def test_one_line_among_thousands_is_named(tmp_path):
    lines = [json.dumps({"text": "a"})] * 5000
    lines[3141] = json.dumps({"text": ["a"]})
    with pytest.raises(Unreadable, match=r"a\.jsonl:3142: no text in the field 'text'"):
        read(tmp_path / "a.jsonl", "\n".join(lines))


def test_empty_documents_are_counted(tmp_path):
    reading = read(tmp_path / "a.jsonl", '{"text": ""}\n\n"a"\n" "\n')
    assert reading.documents == ["a"]
    (line,) = reading.skipped.lines()
    assert line.startswith("2 without text, such as ")
    assert line.endswith("a.jsonl")


def test_removed_frames_are_counted(tmp_path):
    book = framed("Call me Ishmael.")
    reading = read(tmp_path / "a.txt", book)
    (line,) = reading.skipped.lines()
    removed = len(book) - len("Call me Ishmael.\n")
    assert line.startswith(
        f"1 header and licence of Project Gutenberg ({removed} characters), such as "
    )
    assert reading.size == len(book.encode())


@pytest.mark.parametrize("unit", ["\n", " ", " \n", "*", "# ", '"', ",", "\r", "\t\n", "{", "鯨"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_many_of_anything_are_read_or_refused(tmp_path, name, unit):
    # With a search that goes back, or a list of strings a line, this would take minutes.
    head = {"a.csv": "text\n", "a.jsonl": '"a"\n', "a.txt": ""}[name]
    try:
        documents = read(tmp_path / name, head + unit * 200_000 + "\nend").documents
    except Unreadable:
        return
    assert documents
