import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import tables, text
from src.data.text_files import Unreadable
from src.errors import AGI2Error
from tests.data.reading import documents, lines_of, read_with_report, texts, write


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
        texts(tmp_path / "a.csv", "id,text\n" + rows)


@pytest.mark.parametrize("content", ["\n\nid,text\n1,a\n", "\n"])
def test_a_csv_whose_first_line_is_empty_says_so(tmp_path, content):
    with pytest.raises(Unreadable, match=r"(:1: the first line is empty|contains only white)"):
        texts(tmp_path / "a.csv", content)


def test_a_field_that_has_swallowed_rows_is_told_of_once(tmp_path, caplog):
    caplog.set_level("WARNING", logger="agi2")
    rows = '1,"abc\n2,def\n3,ghi"\n4,x\n5,"abc\n6,def\n7,ghi"\n'
    assert len(texts(tmp_path / "a.csv", "id,text\n" + rows)) == 3
    (line,) = [line for line in caplog.messages if "a field" in line]
    assert line.endswith("a.csv:2: a field has lines like rows: is a quote missing?")


@pytest.mark.parametrize("content", ['id,text\n1,"a\nb\nc"\n2,d\n', 'text\n"a\nb\nc"\n'])
def test_a_field_of_several_lines_is_no_mistake(tmp_path, content, caplog):
    caplog.set_level("WARNING", logger="agi2")
    texts(tmp_path / "a.csv", content)
    assert not caplog.messages


def test_all_formats_have_the_same_line_ends(tmp_path):
    text = "a\r\nb\rc\nd"
    for name, content in {
        "a.txt": text,
        "a.csv": f'text\n"{text}"\n',
        "a.jsonl": json.dumps({"text": text}),
    }.items():
        assert texts(tmp_path / name, content) == ["a\nb\nc\nd"]


def test_a_column_that_is_there_twice_is_refused_unless_it_is_another(tmp_path):
    with pytest.raises(Unreadable, match="the column 'text' occurs more than once"):
        texts(tmp_path / "a.csv", "text,text\na,b\n")
    assert texts(tmp_path / "a.csv", "id,text,id\n1,b,2\n") == ["b"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_the_one_that_finds_the_column(tmp_path, separator):
    content = f"\ufeffid{separator} text \r\n1{separator}a, b; c\t|d\r\n"
    content = content.replace("a, b; c\t|d", '"a, b; c\t|d"')
    assert texts(tmp_path / "a.csv", content) == ["a, b; c\t|d"]
    with pytest.raises(Unreadable, match=f"no field 'body' among {'id, text'}; set text_field"):
        texts(tmp_path / "a.csv", content, text_field="body")


def test_a_column_by_itself_may_hold_other_separators_but_no_bare_comma(tmp_path):
    assert texts(tmp_path / "a.csv", "text\na; b|c\td\n") == ["a; b|c\td"]
    with pytest.raises(Unreadable, match=r"a\.csv:2: the row has 2 fields"):
        texts(tmp_path / "a.csv", "text\nCall me Ishmael, please.\n")


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
            texts(path, written.getvalue())
        return
    write(path, written.getvalue())
    found, report = read_with_report(path)
    assert found == expected
    assert bool(report.skipped) == (len(expected) < len(rows))


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
        found = texts(path, content[:place] + content[place + 1 :])
    except AGI2Error:
        return
    assert len(found) >= len(rows)


@pytest.mark.parametrize("unit", ["\n", " ", " \n", "*", "# ", '"', ",", "\r", "\t\n", "{", "鯨"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json", "a.srt"])
def test_many_of_anything_are_read_or_refused(tmp_path, name, unit):
    # With a search that goes back, or a list of strings a line, this would take minutes.
    head = {"a.csv": "text\n", "a.jsonl": '"a"\n', "a.json": '["a"'}.get(name, "")
    try:
        found = texts(tmp_path / name, head + unit * 30_000 + "\nend")
    except Unreadable:
        return
    assert found


def test_the_only_column_with_text_is_taken_and_noted(tmp_path):
    path = write(tmp_path / "a.csv", "id,date,body\n1,2024-01-02,one\n2,,two\n")
    found, report = read_with_report(path)
    assert found == ["one", "two"]
    assert "1 file read in the field 'body', the only one with text" in lines_of(report.notes)
    assert texts(tmp_path / "b.csv", "notes\n12\n3 4\n") == ["12", "3 4"]
    with pytest.raises(Unreadable, match="no field 'text' among a, b; set text_field"):
        texts(tmp_path / "c.csv", "a,b\nx,y\n")
    with pytest.raises(Unreadable, match="no field 'text' among a, b; set text_field"):
        texts(tmp_path / "d.csv", "a,b\n1,2\n")
    with pytest.raises(Unreadable, match=r"no field .text. among 1\.5 20; set text_field"):
        texts(tmp_path / "e.csv", "1.5 20\n2.5 30\n")  # numbers without names


def test_categories_are_not_taken_as_the_text(tmp_path):
    rows = [f"{'yes' if row % 2 else 'no'},what is said in row {row}" for row in range(40)]
    found, report = read_with_report(write(tmp_path / "a.csv", "label,review\n" + "\n".join(rows)))
    assert found == [row.split(",")[1] for row in rows]
    assert "in the field 'review'" in lines_of(report.notes)
    labels = "\n".join(f"{row},{'yes' if row % 2 else 'no'}" for row in range(40))
    with pytest.raises(Unreadable, match="no field 'text' among id, label; set text_field"):
        texts(tmp_path / "b.csv", "id,label\n" + labels)
    # Of a few values it cannot be known.
    assert texts(tmp_path / "c.csv", "id,label\n1,yes\n2,no\n3,no\n") == ["yes", "no", "no"]


def test_tsv_is_separated_by_tabs_alone(tmp_path):
    found = documents(tmp_path / "a.tsv", "id\ttext\n1\ta, b\n\n2\tc;d\n")
    assert [each.text for each in found] == ["a, b", "c;d"]
    assert [each.source.rpartition(":")[2] for each in found] == ["2", "4"]


@pytest.mark.parametrize("start", ["sep=;\n", "\ufeffsep=;\r\n", "SEP=;\n"])
def test_the_separator_that_the_first_line_names_is_taken(tmp_path, start):
    found = documents(tmp_path / "a.csv", start + 'id;text\n1;one, two|three\n2;"a;\nb"\n3;c\n')
    assert [each.text for each in found] == ["one, two|three", "a;\nb", "c"]
    assert [each.source.rpartition(":")[2] for each in found] == ["3", "4", "6"]
    assert texts(tmp_path / "b.csv", "sep=^\nid^text\n1^a;b\n") == ["a;b"]
    assert texts(tmp_path / "c.tsv", "sep=\t\nid\ttext\n1\ta;b\n") == ["a;b"]


@pytest.mark.parametrize(
    "fields", [['"open', "b"], ['say "hi"', '"x" y'], ['"a" and "b"', '"c'], ['"', "d"]]
)
@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_quotes_that_enclose_no_field_between_tabs_are_text(tmp_path, monkeypatch, name, fields):
    content = "id\ttext\n" + "".join(f"{n}\t{field}\n" for n, field in enumerate(fields))
    found, report = read_with_report(write(tmp_path / name, content))
    assert found == fields
    assert "1 file read with quotes as text" in lines_of(report.notes)
    monkeypatch.setattr(tables, "_HEAD", len(content) - 2)
    assert texts(tmp_path / name) == fields


def test_quotes_that_enclose_fields_of_a_tsv_are_no_text(tmp_path):
    content = 'id\ttext\n1\t"a ""b"" c"\n2\td "e" f\n'
    found, report = read_with_report(write(tmp_path / "a.tsv", content))
    assert found == ['a "b" c', 'd "e" f']
    assert not report.notes
    assert texts(tmp_path / "b.tsv", 'id\ttext\n1\t"a\nb\tc"\n') == ["a\nb\tc"]


def test_a_quote_late_in_a_tsv_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_HEAD", 20)
    content = "id\ttext\n" + "1\ta\n" * 20 + '2\t"b\n3\tc\n'
    with pytest.raises(Unreadable, match=r"a\.tsv:22: not CSV: .* If not, quote the fields with q"):
        texts(tmp_path / "a.tsv", content)


def test_line_ends_in_fields_are_kept_on_request(tmp_path):
    content = 'text\r\n"a\r\nb"\r\n'
    assert texts(tmp_path / "a.csv", content) == ["a\nb"]
    assert texts(tmp_path / "a.csv", content, normalize="none") == ["a\r\nb"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["text", "body"])
def test_names_may_be_in_quotes(tmp_path, separator, name):
    assert texts(tmp_path / "a.csv", f'"id"{separator}"{name}"\n1{separator}"a"\n') == ["a"]


def test_a_table_is_read_without_its_end(tmp_path, monkeypatch):
    """The head by which columns are found is a part, and may end within a quoted field."""
    monkeypatch.setattr(tables, "_HEAD", 20)
    rows = "".join(f'{n},"one\ntwo {n}"\n' for n in range(99))
    assert len(texts(tmp_path / "a.csv", "id,body\n" + rows)) == 99


def test_a_field_without_end_is_refused_at_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE", 1000)
    with pytest.raises(Unreadable, match=r"a\.csv:2: not CSV: field larger than field limit"):
        texts(tmp_path / "a.csv", 'text\n"' + "word\n" * 1000 + '"\n')
    csv.field_size_limit(text.MAX_LINE)


@pytest.mark.parametrize("content", ['"', '"a'])
def test_a_first_row_without_end_is_refused(tmp_path, content):
    with pytest.raises(Unreadable, match=r"a\.csv:1: "):
        texts(tmp_path / "a.csv", content)
