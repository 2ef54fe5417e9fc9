import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.formats import HEAD, JSON, JSON_LINES, TABLE, TEXT, format_of
from src.data.recognition import columns_of
from tests.data.reading import lines_of, read_with_report, texts, write

words = st.text(max_size=40)
records = st.dictionaries(st.sampled_from(["text", "id", "tags"]), words | st.lists(words)).map(
    lambda record: {"text": "words", **record}
)


@given(values=st.lists(records, min_size=2, max_size=9), cut=st.integers(1, HEAD))
def test_json_lines_are_recognized_wherever_the_first_bytes_end(values, cut):
    lines = [json.dumps(each) + "\n" for each in values]
    head = "".join(lines).encode()[: max(cut, len(lines[0]) + 1)]
    assert format_of("-", head) is JSON_LINES
    assert format_of("-", lines[0].encode()) is JSON  # perhaps an object with a list of records


@given(values=st.lists(records, min_size=1, max_size=9), cut=st.integers(20, HEAD))
@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_recognized_wherever_the_first_bytes_end(indent, values, cut):
    for value in (values, {"data": values}):
        head = json.dumps(value, indent=indent).encode()[:cut]
        assert format_of("-", head) is JSON


@given(rows=st.lists(st.tuples(words, words), min_size=2), separator=st.sampled_from(",\t;|"))
def test_tables_are_recognized(rows, separator):
    written = io.StringIO()
    csv.writer(written, delimiter=separator, lineterminator="\n").writerows([("id", "text"), *rows])
    head = written.getvalue().replace("\r", "").replace("\0", "").encode("utf-8", "replace")
    assert format_of("-", head) is TABLE
    assert columns_of(head) == ["id", "text"]


@pytest.mark.parametrize(
    "content",
    [
        b"{ braces } are text\n{ here }\n",
        b'["Hello," she said.]\nAnd so on.\n',
        b"[1, 2, 3]\n",
        b"[" * 5000,
        b'{"a": 1}\nThen come\nlines of text\nwithout any\n',
        b"Dear Bob,\nHello, there\nand so on, and on\n",
        b"one, two\nthree, four\nfive, six\n",
        b"text,text\na,b\nc,d\n",
        b"text,id\na,b\nc\n",
        b'text,id\n"a,b\nc,d' + b"x" * 200_000,
        b"text,id\n",
        b"name,place\nAhab,sea\nIshmael,shore\n",
        b"",
    ],
)
def test_other_beginnings_are_text(content):
    assert format_of("-", content) is TEXT


def test_names_win_over_beginnings():
    assert format_of("a.txt", b'{"text": "a"}\n{"text": "b"}\n') is TEXT
    assert format_of("a.csv", b'{"text": "a"}\n{"text": "b"}\n') is TABLE


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{"text": "one two"}\n{"text": "three"}\n', "JSON lines"),
        ('[{"text": "one two"},\n {"text": "three"}]\n', "JSON"),
        ('id,text\n1,one two\n2,"three"\n', "a table"),
    ],
)
def test_what_has_no_name_is_read_in_its_format_with_a_note(tmp_path, content, kind):
    found, report = read_with_report(write(tmp_path / "download", content))
    assert found == ["one two", "three"]
    assert f"1 file read as {kind}, by the first bytes" in lines_of(report.notes)
    assert texts(tmp_path / "b.txt", content) == [content]


def test_what_may_be_a_table_is_noted(tmp_path):
    content = "name,place\nAhab,sea\nIshmael,shore\n"
    found, report = read_with_report(write(tmp_path / "download", content))
    assert found == [content]
    assert "1 file with the lines of a table, read as text (name it" in lines_of(report.notes)
