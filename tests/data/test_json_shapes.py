import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.documents import ReadOptions, SourceReport
from src.data.inputs import Input
from src.data.json_shapes import items_in, kind_of, records_in
from src.data.text_files import Unreadable
from tests.data.reading import lines_of, read_with_report, texts, write

MESSAGE = {"role": "user", "content": "a"}
ROWS = [{"text": "one", "id": 1}, {"text": "two", "id": 2}]
LONG = "The lighthouse keeper counted the ships. " * 9


def opened(**options):
    stream = io.BufferedReader(io.BytesIO())
    return Input("a.json", "a.json", stream, ReadOptions(**options), SourceReport("a.json"))


def skipped_characters(source):
    return sum(entry.size for _, entry in source.report.skipped.entries())


@pytest.mark.parametrize(
    "layout",
    [
        {"text": {"0": "one", "1": "two"}, "id": {"0": 1, "1": 2}},  # columns
        {"0": ROWS[0], "7": ROWS[1]},  # index
        {"columns": ["text", "id"], "index": [0, 1], "data": [["one", 1], ["two", 2]]},  # split
        {"schema": {"fields": [{"name": "text"}]}, "data": ROWS},  # table
        ROWS,  # records
    ],
)
def test_layouts_of_pandas_are_rows(tmp_path, layout):
    source = opened()
    assert records_in(source, layout, ("text",)) == ROWS
    assert not source.report.skipped
    assert texts(tmp_path / "a.json", json.dumps(layout)) == ["one", "two"]


@pytest.mark.parametrize(
    "value",
    [
        {"text": {"0": "one"}, "id": {"1": 1}},
        {"text": {"a": "one"}},
        {"text": {"0": "one"}, "id": 1},
        {"text": {}},
        {"columns": ["text"], "data": [["one", 1]]},
        {"columns": [1], "data": [["one"]]},
        {"columns": ["text"], "data": []},
        {"columns": ["text"], "data": [["one"]], "title": "two"},
        {"schema": {"version": "1"}, "data": []},
        {"0": MESSAGE, "1": MESSAGE},
        {"messages": [MESSAGE]},
        {"text": "one", "data": ROWS},
        {"train": ROWS, "test": ROWS},
        {},
        [MESSAGE],
        ["one", "two"],
        [],
        "one",
        None,
    ],
)
def test_other_values_are_one_record(value):
    assert records_in(opened(), value, ("text",)) == [value]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"title": "A", "content": LONG, "tags": [{"name": "sea"}]}, None),
        ({"content": "words", "tags": [{"name": "a"}, {"name": "b"}]}, ["words"]),
        ({"content": LONG, "authors": [{"name": "sea"}]}, [LONG]),
        ({"paragraphs": [LONG, LONG], "tags": [{"name": "sea"}]}, None),
        ({"schema": {"title": LONG}, "data": [{"a": "one"}]}, None),
        ({"version": "1", "info": {"by": ["me"]}, "data": [{"a": "one more"}]}, ["one more"]),
        ({"version": "1.0.0-beta", "data": [{"text": "one"}]}, ["one"]),
        ({"n": 3, "data": [{"text": "one"}]}, ["one"]),
    ],
)
def test_an_object_whose_text_is_not_in_its_list_is_the_record(tmp_path, value, expected):
    source, (*_, rows) = opened(), value.values()
    is_list = records_in(source, value, ("text",)) == rows
    assert is_list == (expected not in (None, [LONG], ["words"]))
    assert (skipped_characters(source) > 0) == (is_list and "n" not in value)
    if expected is None:
        with pytest.raises(Unreadable, match=r"a\.json record 1: no field 'text' among"):
            texts(tmp_path / "a.json", json.dumps(value))
    else:
        assert texts(tmp_path / "a.json", json.dumps(value)) == expected


def test_texts_beside_the_only_list_are_counted(tmp_path):
    content = json.dumps({"version": "1.0", "by": ["me", "you"], "data": ROWS})
    found, report = read_with_report(write(tmp_path / "a.json", content))
    assert found == ["one", "two"]
    line = "3 texts next to the only list of objects (8 characters), such as "
    assert line in lines_of(report.skipped)
    assert lines_of(report.skipped).endswith("a.json: 'version', beside 'data'")


@pytest.mark.parametrize("field", ["text", "words"])
def test_long_texts_of_an_object_and_of_its_list_need_the_field(tmp_path, field):
    value = {"title": "A", "preface": LONG, "chapters": [{field: LONG + "1"}, {field: LONG + "2"}]}
    path = write(tmp_path / "a.json", json.dumps(value))
    with pytest.raises(
        Unreadable, match=r"texts in 'preface' and in the objects of the list 'chapters': set text_"
    ):
        texts(path)
    assert texts(path, text_field="preface") == [LONG]
    assert texts(path, text_field=field) == [LONG + "1", LONG + "2"]


@pytest.mark.parametrize("others", ["", "[]", '"one more"'])
def test_objects_one_after_the_other_are_records_as_in_json_lines(tmp_path, others):
    posts = [{"content": f"words {n}", "by": [{"name": "a long name"}]} for n in range(9)]
    content = "\n".join([others, *map(json.dumps, posts)])
    expected = [each["content"] for each in posts]
    more = ["one more"] * others.startswith('"')
    assert texts(tmp_path / "a.json", content) == more + expected
    pages = [{"page": n, "results": [{"body": f"words {n}"}]} for n in range(9)]
    found = texts(tmp_path / "b.json", "\n".join(map(json.dumps, pages)))
    assert found == expected


def test_conversations_in_a_list_are_read_whatever_is_beside_them():
    rows = [{"messages": [MESSAGE, {"role": "assistant", "content": LONG}]}]
    source = opened(are_conversations=True)
    assert records_in(source, {"about": LONG, "data": rows}, ("messages",)) == rows
    assert skipped_characters(source) == len(LONG)


strings = st.text(max_size=5) | st.just(LONG)
objects = st.dictionaries(st.sampled_from(["text", "a", "b"]), strings | st.integers(), max_size=3)


@given(
    beside=st.dictionaries(st.sampled_from("cdef"), strings | st.lists(strings), max_size=3),
    rows=st.lists(objects, min_size=1, max_size=4),
    field=st.sampled_from([None, "text", "c"]),
)
def test_every_text_is_in_a_record_or_counted(beside, rows, field):
    source = opened(text_field=field)
    try:
        records = records_in(source, {**beside, "rows": rows}, (field or "text",))
    except Unreadable:
        assert LONG in json.dumps(beside)
        return
    texts = [
        text for each in beside.values() for text in ([each] if isinstance(each, str) else each)
    ]
    if records == rows:
        assert skipped_characters(source) == sum(map(len, texts))
    else:
        assert records == [{**beside, "rows": rows}]
        assert not source.report.skipped


def test_items_of_a_list_are_records_if_all_are_objects():
    assert items_in(ROWS) == ROWS
    for value in (ROWS[0], {"data": ROWS}, [ROWS[0], "one"], [ROWS[0], MESSAGE]):
        assert items_in(value) == [value]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([], "a list"),
        ([1, "a"], "a list"),
        ([[1]], "a list of lists"),
        (["a"], "a list of texts"),
        ([{}], "a list of objects"),
        ({}, "an object"),
        (True, "true or false"),
        (None, "null"),
        (1.5, "a number"),
    ],
)
def test_kinds_of_values_are_named(value, kind):
    assert kind_of(value) == kind
