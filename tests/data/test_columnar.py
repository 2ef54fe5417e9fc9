import io
import re

import pyarrow
import pyarrow.parquet
import pytest

from src.data import columnar
from src.data.text_files import Unreadable
from tests.data.document_corpus import arrow, arrow_stream, parquet
from tests.data.reading import documents, lines_of, read_with_report, texts, write

ROWS = [f"row {number}" for number in range(600)]


def parquet_of(table, **options):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, **options)
    return sink.getvalue()


def arrow_of(table):
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def arrow_file_of(table):
    sink = io.BytesIO()
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "write_rows"), [("a.parquet", parquet), ("a.arrow", arrow), ("b.arrow", arrow_stream)]
)
def test_rows_are_documents_in_order(tmp_path, name, write_rows):
    found = documents(tmp_path / name, write_rows(ROWS))
    assert [each.text for each in found] == ROWS
    assert found[299].source.endswith(f"{name} row 300")


def test_null_is_no_text(tmp_path):
    table = pyarrow.table({"text": ["a", None, "b"]})
    write(tmp_path / "a.parquet", parquet_of(table))
    found, report = read_with_report(tmp_path / "a.parquet")
    assert found == ["a", "b"]
    assert "1 document without text" in lines_of(report.skipped)


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()])
def test_the_only_column_of_text_is_taken(tmp_path, kind):
    table = pyarrow.table({"n": [1, 2], "body": pyarrow.array(["one", "two"], kind)})
    write(tmp_path / "a.arrow", arrow_of(table))
    found, report = read_with_report(tmp_path / "a.arrow")
    assert found == ["one", "two"]
    assert "read in the field 'body'" in lines_of(report.notes)


def test_a_dictionary_of_texts_is_text(tmp_path):
    table = pyarrow.table({"n": [1, 2], "body": pyarrow.array(["x", "x"]).dictionary_encode()})
    assert texts(tmp_path / "a.parquet", parquet_of(table)) == ["x", "x"]


@pytest.mark.parametrize("write_table", [parquet_of, arrow_of])
def test_columns_are_listed_where_the_text_is_not_clear(tmp_path, write_table):
    path = tmp_path / ("a.parquet" if write_table is parquet_of else "a.arrow")
    write(path, write_table(pyarrow.table({"a": ["x"], "b": ["y"], "n": [1]})))
    with pytest.raises(Unreadable, match=f"{path.name}: no field 'text' among a, b, n; set text_f"):
        texts(path)
    assert texts(path, text_field="b") == ["y"]
    with pytest.raises(
        Unreadable, match="'n' of a, b, n is int64, not text: set text_field, such as"
    ):
        texts(path, text_field="n")


@pytest.mark.parametrize("value", [["some", "words"], {"a": "b"}, b"bytes", 1])
def test_a_column_that_is_not_text_is_described(tmp_path, value):
    table = pyarrow.table({"text": [value]})
    kind = re.escape(str(table.schema.field("text").type)).split("<")[0] + r"[^,]*"
    with pytest.raises(
        Unreadable, match=f"'text' of text is {kind}, not text: save the text of each row"
    ):
        texts(tmp_path / "a.parquet", parquet_of(table))
    with pytest.raises(Unreadable, match=rf"among n; none of them is text \(n is {kind}\): save"):
        texts(tmp_path / "b.parquet", parquet_of(table.rename_columns(["n"])))


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["text", "text"])
    with pytest.raises(Unreadable, match="the column 'text' occurs more than once"):
        texts(tmp_path / "a.arrow", arrow_of(table))


def test_damage_is_named_with_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "_ROWS", 10)
    table = pyarrow.table({"text": ROWS})
    content = bytearray(arrow_of(pyarrow.concat_tables([table, table.slice(0)])))
    with pytest.raises(Unreadable, match=r"a\.arrow row 601: damaged: "):
        texts(tmp_path / "a.arrow", bytes(content[: len(content) - 3000]))


@pytest.mark.parametrize("count", [1, 5, 600])
@pytest.mark.parametrize(("name", "write_rows"), [("a.parquet", parquet), ("a.arrow", arrow)])
def test_files_joined_into_one_are_refused(tmp_path, name, write_rows, count):
    write(tmp_path / name, write_rows(ROWS[:count]) + write_rows(ROWS[:5]))
    with pytest.raises(Unreadable, match=f"{name}: several files joined into one"):
        read_with_report(tmp_path / name)


def test_streams_joined_into_one_are_all_read(tmp_path):
    parts = [arrow_stream(ROWS[first : first + 200]) for first in (0, 200, 400)]
    found = documents(tmp_path / "a.arrow", b"".join(parts))
    assert [each.text for each in found] == ROWS
    assert found[599].source.endswith("row 600")
    tables = [pyarrow.table({"body": [row], "n": [1]}) for row in ("one", "two")]
    write(tmp_path / "b.arrow", b"".join(map(arrow_of, tables)))
    rows, report = read_with_report(tmp_path / "b.arrow")
    assert rows == ["one", "two"]
    assert "1 file read in the field 'body'" in lines_of(report.notes)
    write(tmp_path / "b.arrow", arrow_of(tables[0]) + arrow_stream(["three"]))
    with pytest.raises(Unreadable, match="streams of different columns joined into one"):
        read_with_report(tmp_path / "b.arrow")


@pytest.mark.parametrize("options", [{}, {"write_page_index": True}, {"row_group_size": 7}])
def test_indices_and_text_like_a_joint_are_no_joint(tmp_path, options):
    rows = ["bytes: PAR1PAR1, ARROW1ARROW1", *ROWS]
    data = parquet_of(pyarrow.table({"text": rows}), compression="none", **options)
    assert texts(tmp_path / "a.parquet", data) == rows
    assert texts(tmp_path / "a.arrow", arrow(rows)) == rows
    write(tmp_path / "b.parquet", data + data)
    with pytest.raises(Unreadable, match="joined"):
        read_with_report(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("name", "write_table"),
    [("a.parquet", parquet_of), ("a.arrow", arrow_of), ("b.arrow", arrow_file_of)],
)
def test_columns_of_categories_are_no_candidates(tmp_path, name, write_table):
    bodies = [f"body {number}" for number in range(30)]
    columns = {"lang": ["en"] * 30, "date": ["2026-01-02"] * 30, "body": bodies}
    table = pyarrow.table(columns)
    write(tmp_path / name, write_table(table))
    found, report = read_with_report(tmp_path / name)
    assert found == bodies
    assert "read in the field 'body'" in lines_of(report.notes)
    for other in (table.select(["lang", "date"]), table.slice(0, 0)):
        write(tmp_path / name, write_table(other))
        with pytest.raises(Unreadable, match="no field 'text' among lang, date"):
            read_with_report(tmp_path / name)


def test_feather_of_version_1_is_named(tmp_path):
    write(tmp_path / "a.feather", b"FEA1" + bytes(99))
    with pytest.raises(Unreadable, match=r"a\.feather: a Feather file of version 1: save it again"):
        read_with_report(tmp_path / "a.feather")


def test_damaged_offsets_are_an_error_rather_than_a_crash(tmp_path):
    data = bytearray(arrow_of(pyarrow.table({"text": ["one", "two", "three"]})))
    offsets = b"".join(end.to_bytes(4, "little") for end in (0, 3, 6, 11))
    at = data.index(offsets)
    data[at + 4 : at + 8] = (2**30).to_bytes(4, "little")
    write(tmp_path / "a.arrow", bytes(data))
    with pytest.raises(Unreadable, match=r"a\.arrow: damaged: Offset"):
        read_with_report(tmp_path / "a.arrow")
